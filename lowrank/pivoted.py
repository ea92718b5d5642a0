"""Factors without what they say twice: r rows of the product stand for themselves.

A matrix W = P Q of rank r has r rows that all others are combinations of:

    W[pivots] = B [r, n],    W[others] = C B,    C [m - r, r]

That is P Q with another basis, in which a square block of P is the identity and is not stored:
r (m + n - r) numbers instead of r (m + n), for the same function (Zhao, Zhang, Cannistraci 2025,
arXiv 2501.19090). Rows come out pivots first. `lowrank.pivoting` makes such layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PivotedLinear(nn.Linear):
    """y = W x + b with W[pivots] = B and W[others] = C B.

    C is called `weight` and B `projection`, as factors are (`LowRankLinear`). The bias belongs to
    rows as they are stored, pivots first.

    Args:
        in_features: Width of x.
        out_features: Width of y.
        rank: Rows of B, 1 <= rank <= out_features.
        bias: Whether there is a b.
        ordered: Whether outputs are put into their order; False if whoever reads them expects
            pivots first.
    """

    order: Tensor | None
    """Where each output is among the stored rows, int32 [out_features]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        ordered: bool = True,
        **factory: Any,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw a matrix that is not used
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight = nn.Parameter(torch.zeros(out_features - rank, rank, **factory))
        self.projection = nn.Parameter(torch.zeros(rank, in_features, **factory))
        shift = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        self.register_parameter("bias", shift)
        # int32 holds any width and is half of what torch would take
        order = torch.arange(out_features, dtype=torch.int32, device=factory.get("device"))
        self.register_buffer("order", order if ordered else None)

    def forward(self, input: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        pivots = F.linear(input, self.projection)
        if self.bias is None:
            stored = torch.cat((pivots, F.linear(pivots, self.weight)), dim=-1)
        else:
            own, others = self.bias.split((self.rank, self.out_features - self.rank))
            stored = torch.cat((pivots + own, F.linear(pivots, self.weight, others)), dim=-1)
        return stored if self.order is None else stored.index_select(-1, self.order)

    def order_is_valid(self) -> bool:
        """Whether every stored row comes out once: a damaged file may say otherwise."""
        if self.order is None:
            return True
        places = torch.arange(self.out_features, device=self.order.device)
        return torch.equal(self.order.long().sort().values, places)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """W, [out_features, in_features], made in float64 and rounded once, and b; as they come
        out."""
        pivots = self.projection.detach().double()
        weight = torch.cat((pivots, self.weight.detach().double() @ pivots)).to(self.weight.dtype)
        bias = None if self.bias is None else self.bias.detach()
        if self.order is None:
            return weight, bias
        return weight[self.order.long()], None if bias is None else bias[self.order.long()]

    def extra_repr(self) -> str:
        order = "" if self.order is None else ", ordered"
        return f"{self.in_features}, {self.out_features}, rank={self.rank}{order}"

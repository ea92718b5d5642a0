"""The two forms of a factorized layer: gated while it is pruned, plain once it is compacted.

Weights follow nn.Linear, [out, in]. transformers' Conv1D stores the transpose; it is turned
round on the way in and on the way out, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.density import LayerShape
from lowrank.factorize import factorize
from lowrank.gate import GateConfig, HardConcreteGate, expected_value


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D; told by name, so that transformers stays optional."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_matrix_layer(module: nn.Module) -> bool:
    """Whether the module computes y = W x + b with one plain matrix that can be factorized."""
    return type(module) is nn.Linear or is_conv1d(module)


def dense_weight(module: nn.Module) -> Tensor:
    """W as [out_features, in_features]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_conv1d(module) else weight


def layer_shape(module: nn.Module) -> LayerShape:
    out_features, in_features = dense_weight(module).shape
    return LayerShape(in_features, out_features)


class LowRankLinear(nn.Module):
    """y = up(down(x)): what a pruned layer is at inference. No gate, two plain nn.Linear."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, **factory: Any
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, **factory)
        self.up = nn.Linear(rank, out_features, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        return self.up(self.down(x))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


class GatedLinear(nn.Module):
    """y = P diag(z) Q x + b (Wang et al. 2020, arXiv 1910.04732, eq. 4).

    Built from a dense layer by full-rank SVD. P is divided by E[z] at insertion, so that in
    evaluation mode the new layer computes what the old one did, for any initial gate.
    """

    def __init__(self, dense: nn.Module, config: GateConfig) -> None:
        super().__init__()
        self.shape = layer_shape(dense)
        self._dense_class = type(dense)
        weight = dense_weight(dense)
        factors = factorize(weight)
        self.gate = HardConcreteGate(self.shape.full_rank, config).to(weight.device)
        mean = expected_value(torch.tensor([config.init_log_alpha]).double(), config).item()
        self.down = nn.Parameter(factors.down)
        self.up = nn.Parameter(factors.up / mean)
        bias = dense.bias
        self.bias = bias if isinstance(bias, nn.Parameter) else None
        self.train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        """[*batch, in_features] -> [*batch, out_features]."""
        hidden = F.linear(x, self.down)
        return F.linear(hidden * self.gate().to(hidden.dtype), self.up, self.bias)

    def compact(self, keep: Tensor) -> nn.Module:
        """The plain layer with the kept components, E[z] folded into P.

        Args:
            keep: Mask of components, bool [full_rank], at least one set.

        Returns:
            A `LowRankLinear`, or a dense layer of the original class where the factors would not
            be smaller than the matrix.
        """
        with torch.no_grad():
            z = expected_value(self.gate.log_alpha.double(), self.gate.config)
            up = (self.up.double() * z)[:, keep]
            down = self.down.double()[keep]
            if int(keep.sum()) > self.shape.break_even_rank:
                return self._to_dense(up @ down)
            return self._to_low_rank(up, down)

    def _to_low_rank(self, up: Tensor, down: Tensor) -> LowRankLinear:
        small = LowRankLinear(
            self.shape.in_features,
            self.shape.out_features,
            rank=len(down),
            bias=self.bias is not None,
            device=self.up.device,
            dtype=self.up.dtype,
        )
        small.down.weight.copy_(down)
        small.up.weight.copy_(up)
        if self.bias is not None:
            small.up.bias.copy_(self.bias)
        return small.train(self.training)

    def _to_dense(self, weight: Tensor) -> nn.Module:
        shape, dense_class = self.shape, self._dense_class
        dense: nn.Module
        if dense_class is nn.Linear:
            dense = nn.Linear(shape.in_features, shape.out_features, bias=self.bias is not None)
        else:
            dense = dense_class(shape.out_features, shape.in_features)
            weight = weight.t()
        dense = dense.to(device=self.up.device, dtype=self.up.dtype)
        assert isinstance(dense.weight, Tensor)
        dense.weight.copy_(weight)
        if self.bias is not None:
            assert isinstance(dense.bias, Tensor)
            dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.shape.in_features}, {self.shape.out_features}, gates={self.shape.full_rank}"

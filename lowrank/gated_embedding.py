"""What stands for an embedding, or an output projection, while its components are pruned.

Both may be dense or already two factors (`lowrank.embedding`): a part of a vocabulary that a model
gives fewer dimensions than its width. E = A diag(z) B; at the input (A_v * z) B, at the output
(h Bᵀ * z) Aᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.density import FactoredShape, LayerShape
from lowrank.embedding import LowRankEmbedding, LowRankHead, row_cleared, without_gradient
from lowrank.factorize import Factorization
from lowrank.gate import Gate
from lowrank.pruned import GatedFactors
from lowrank.shrinking import Swap

SmallT = TypeVar("SmallT", LowRankEmbedding, LowRankHead)


def table_shape(table: nn.Embedding | LowRankHead) -> LayerShape:
    """Of E as the matrix of an output projection: tokens go out, width goes in."""
    if isinstance(table, LowRankHead):
        return FactoredShape(table.in_features, table.out_features, table.rank)
    if isinstance(table, LowRankEmbedding):
        return FactoredShape(table.embedding_dim, table.num_embeddings, table.rank)
    return LayerShape(table.embedding_dim, table.num_embeddings)


class _GatedTable(GatedFactors):
    """Parameters of a gated table, by the names of `lowrank.embedding`."""

    def __init__(
        self,
        table: nn.Embedding | LowRankHead,
        gate: Gate,
        factors: Factorization,
        zero_row: int | None = None,
    ) -> None:
        super().__init__(table_shape(table))
        self.zero_row = zero_row
        dense = table.weight
        self.gate = gate.to(dense.device)
        up = factors.up.double() / self.gate.value().to(dense.device)
        if zero_row is not None:
            up[zero_row] = 0
        self.weight = nn.Parameter(up.to(dense))
        self.projection = nn.Parameter(factors.down.to(dense))
        self.energy = factors.energy
        self.first_token = getattr(table, "first_token", 0)

    factor_names = ("projection", "weight")

    @property
    def down(self) -> nn.Parameter:  # type: ignore[override]
        return self.projection

    @property
    def up(self) -> nn.Parameter:  # type: ignore[override]
        return self.weight

    def _folded(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """A with the gates in it, and B, of the kept components; float64."""
        up = self.weight.detach().double() * self.gate.value()
        return up[:, keep], self.projection.detach().double()[keep]

    def extra_repr(self) -> str:
        shape = self.shape
        return f"{shape.out_features}, {shape.in_features}, gates={self.num_components}"


class GatedEmbedding(_GatedTable):
    """An embedding, and the output projections tied to it, as A diag(z) B.

    Both ends see one gate vector, and so one sample per step. A is divided by the gates' value at
    insertion, so that in evaluation mode the new layer computes what its factors do.

    A padding row that is zero stays zero: its row of A is zero, gets no gradient from either end,
    and the token's logit is its bias. Where the row is not zero it is treated as nn.Embedding does:
    no gradient from the input.

    Args:
        embedding: To stand for.
        heads: Output projections whose weight is the embedding's.
        gate: One gate per component, not yet trained.
        factors: Start of A (`up`) and B (`down`).
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        heads: Sequence[nn.Module],
        gate: Gate,
        factors: Factorization,
    ) -> None:
        super().__init__(embedding, gate, factors, zero_padding(embedding))
        self.padding_idx = embedding.padding_idx
        # a tuple, for as submodules the heads would have two places in the model
        self.heads = tuple(GatedHead(self, head) for head in heads)
        self.train(embedding.training)

    @property
    def stand_ins(self) -> tuple[nn.Module, ...]:
        return (self, *self.heads)

    def drop(self, keep: Tensor) -> list[Swap]:
        """As of the base class; the heads go on sharing the factors."""
        found = super().drop(keep)
        for head in self.heads:
            head.weight, head.projection = self.weight, self.projection
        return found

    def forward(self, input: Tensor) -> Tensor:
        """Token ids [*batch] -> [*batch, embedding_dim]."""
        rows = F.embedding(input, self.weight, self.padding_idx)
        return ((rows * self.gate().to(rows.dtype)) @ self.projection).to(self.weight.dtype)

    def compact(self, keep: Tensor) -> nn.Module:
        return self.compact_all(keep)[0]

    def compact_all(self, keep: Tensor) -> tuple[nn.Module, ...]:
        """The embedding with the gates folded into A, and its heads, which share its parameters.

        Returns:
            `LowRankEmbedding` and `LowRankHead`s, or nn.Embedding and nn.Linear where the factors
            would not be smaller than the matrix.
        """
        up, down = self._folded(keep)
        embedding: nn.Embedding
        heads: list[nn.Module]
        if len(down) >= self.dense_from:
            embedding = self._dense(up @ down)
            heads = [_tied_linear(embedding, head.bias) for head in self.heads]
        else:
            embedding = small = self._low_rank(up, down)
            heads = [LowRankHead.tied(small, head.bias, self.zero_row) for head in self.heads]
        for module, head in zip(heads, self.heads, strict=True):
            module.train(head.training)
        return (embedding.train(self.training), *heads)

    def _low_rank(self, up: Tensor, down: Tensor) -> LowRankEmbedding:
        tokens, width = self.shape.out_features, self.shape.in_features
        factory = {"device": "meta", "dtype": self.weight.dtype}
        small = LowRankEmbedding(tokens, width, len(down), self.padding_idx, **factory)
        return _filled(small.to_empty(device=self.weight.device), up, down, self.first_token)

    def _dense(self, table: Tensor) -> nn.Embedding:
        # on the meta device, so that no initialization is drawn from the global generator
        rows, columns = table.shape
        dense = nn.Embedding(
            rows, columns, self.padding_idx, device="meta", dtype=self.weight.dtype
        ).to_empty(device=table.device)
        with torch.no_grad():
            dense.weight.copy_(table)
        if self.zero_row is not None and self.heads:
            row = self.zero_row
            dense.weight.register_hook(lambda gradient: row_cleared(gradient, row))
        return dense


class GatedHead(nn.Module):
    """The output projection that a `GatedEmbedding` is tied to; all but the bias is the
    embedding's."""

    def __init__(self, embedding: GatedEmbedding, dense: nn.Module) -> None:
        super().__init__()
        self.in_features = embedding.shape.in_features
        self.out_features = embedding.shape.out_features
        self.weight, self.projection = embedding.weight, embedding.projection
        self.gate, self.zero_row = embedding.gate, embedding.zero_row
        # the very one: other modules may hold it too
        bias = dense.bias
        self.bias = bias if isinstance(bias, nn.Parameter) else None
        self.train(dense.training)

    def forward(self, input: Tensor) -> Tensor:
        """[*batch, in_features] -> logits [*batch, num_embeddings]."""
        hidden = F.linear(input, self.projection)
        rows = without_gradient(self.weight, self.zero_row)
        return F.linear(hidden * self.gate().to(hidden.dtype), rows, self.bias)


class GatedLowRankHead(_GatedTable):
    """A `LowRankHead` with factors of its own, as A diag(z) B."""

    def __init__(self, head: LowRankHead, gate: Gate, factors: Factorization) -> None:
        super().__init__(head, gate, factors)
        self.bias: nn.Parameter | None = head.bias
        self.train(head.training)

    def forward(self, input: Tensor) -> Tensor:
        """[*batch, in_features] -> logits [*batch, out_features]."""
        hidden = F.linear(input, self.projection)
        return F.linear(hidden * self.gate().to(hidden.dtype), self.weight, self.bias)

    def compact(self, keep: Tensor) -> LowRankHead:
        """With the gates folded into A; its factors never become one matrix."""
        up, down = self._folded(keep)
        tokens, width = self.shape.out_features, self.shape.in_features
        factory = {"device": "meta", "dtype": self.weight.dtype}
        small = LowRankHead(width, tokens, len(down), bias=False, **factory)
        small = _filled(small.to_empty(device=self.weight.device), up, down, self.first_token)
        small.register_parameter("bias", self.bias)
        return small.train(self.training)


def zero_padding(embedding: nn.Embedding) -> int | None:
    """The padding token, if there is one and its vector is zero."""
    row = embedding.padding_idx
    if row is None or bool(embedding.weight[row].any()):
        return None
    return row


def _filled(small: SmallT, up: Tensor, down: Tensor, first_token: int) -> SmallT:
    with torch.no_grad():
        small.weight.copy_(up)
        small.projection.copy_(down)
    small.first_token = first_token
    return small


def _tied_linear(embedding: nn.Embedding, bias: nn.Parameter | None) -> nn.Linear:
    rows, columns = embedding.weight.shape
    with torch.device("meta"):
        head = nn.Linear(columns, rows, bias=False)
    head.weight = embedding.weight
    head.register_parameter("bias", bias)
    return head

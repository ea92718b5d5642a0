"""The forms of a factorized embedding, alone or tied to an output projection.

E = A diag(z) B with A [num_embeddings, rank] and B [rank, embedding_dim]. At the input a token's
row of A is looked up first, (A_v * z) B; at the output the hidden state meets B first,
(h Bᵀ * z) Aᵀ. E itself is never formed.

A is called `weight` everywhere, as in the layers it replaces: transformers ties and resizes
vocabularies by that name, and new tokens become new rows of A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.density import LayerShape
from lowrank.factorize import Factorization
from lowrank.gate import Gate
from lowrank.pruned import GatedFactors


def is_embedding(module: nn.Module) -> bool:
    """Whether the module is a plain table of vectors: no norm limit, dense gradients."""
    return (
        type(module) is nn.Embedding
        and module.max_norm is None
        and not module.sparse
        and not module.scale_grad_by_freq
    )


class LowRankEmbedding(nn.Embedding):
    """A_v B: what a pruned embedding is at inference.

    Args:
        num_embeddings: Tokens.
        embedding_dim: Width of the vectors that come out.
        rank: Of the factors.
        padding_idx: Token whose row of A gets no gradient, as in nn.Embedding.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        rank: int,
        padding_idx: int | None = None,
        **factory: Any,
    ) -> None:
        super().__init__(num_embeddings, rank, padding_idx, **factory)
        self.embedding_dim, self.rank = embedding_dim, rank
        self.projection = nn.Parameter(torch.empty(rank, embedding_dim, **factory))
        nn.init.normal_(self.projection, std=rank**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids [*batch] -> [*batch, embedding_dim]."""
        rows = F.embedding(input, self.weight, self.padding_idx)
        # a look-up keeps its dtype under autocast
        return (rows @ self.projection).to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


class LowRankHead(nn.Linear):
    """(h Bᵀ) Aᵀ + b, with the A and B of a `LowRankEmbedding`: an output projection tied to it.

    Args:
        embedding: The one to share parameters with.
        bias: Of the logits.
        zero_row: Token whose row of A is zero and stays so.
    """

    def __init__(
        self, embedding: LowRankEmbedding, bias: nn.Parameter | None, zero_row: int | None = None
    ) -> None:
        with torch.device("meta"):
            super().__init__(embedding.rank, embedding.num_embeddings, bias=False)
        self.in_features, self.rank = embedding.embedding_dim, embedding.rank
        self.zero_row = zero_row
        self.weight, self.projection = embedding.weight, embedding.projection
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """[*batch, in_features] -> logits [*batch, num_embeddings]."""
        rows = without_gradient(self.weight, self.zero_row)
        return F.linear(F.linear(input, self.projection), rows, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


class GatedEmbedding(GatedFactors):
    """An embedding, and the output projections tied to it, as A diag(z) B.

    Both ends see one gate vector, and so one sample per step. A is divided by the gates' value at
    insertion, so that in evaluation mode the new layer computes what its factors do.

    A padding row that is zero stays zero: its row of A is zero, gets no gradient from either end,
    and the token's logit is its bias. Where the row is not zero it is treated as nn.Embedding does:
    no gradient from the input.

    Args:
        embedding: To stand for.
        heads: nn.Linear modules whose weight is the embedding's.
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
        dense = embedding.weight
        super().__init__(LayerShape(embedding.embedding_dim, embedding.num_embeddings))
        self.gate = gate.to(dense.device)
        table = factors.up.double() / self.gate.value().to(dense.device)
        self.padding_idx, self.zero_row = embedding.padding_idx, zero_padding(embedding)
        if self.zero_row is not None:
            table[self.zero_row] = 0
        self.weight = nn.Parameter(table.to(dense))
        self.projection = nn.Parameter(factors.down.to(dense))
        self.energy = factors.energy
        # a tuple, for as submodules the heads would have two places in the model
        self.heads = tuple(GatedHead(self, head) for head in heads)
        self.train(embedding.training)

    @property
    def down(self) -> nn.Parameter:  # type: ignore[override]
        return self.projection

    @property
    def up(self) -> nn.Parameter:  # type: ignore[override]
        return self.weight

    @property
    def stand_ins(self) -> tuple[nn.Module, ...]:
        return (self, *self.heads)

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
        with torch.no_grad():
            up = (self.weight.double() * self.gate.value())[:, keep]
            down = self.projection.double()[keep]
            if int(keep.sum()) >= self.dense_from:
                embedding: nn.Embedding = self._dense(up @ down)
                heads = [_tied_linear(embedding, head.bias) for head in self.heads]
            else:
                small = self._low_rank(up, down)
                embedding = small
                heads = [LowRankHead(small, head.bias, self.zero_row) for head in self.heads]
        for module, head in zip(heads, self.heads, strict=True):
            module.train(head.training)
        return (embedding.train(self.training), *heads)

    def _low_rank(self, up: Tensor, down: Tensor) -> LowRankEmbedding:
        small = LowRankEmbedding(
            self.shape.out_features,
            self.shape.in_features,
            len(down),
            self.padding_idx,
            device="meta",
            dtype=self.weight.dtype,
        ).to_empty(device=self.weight.device)
        small.weight.copy_(up)
        small.projection.copy_(down)
        return small

    def _dense(self, table: Tensor) -> nn.Embedding:
        # on the meta device, so that no initialization is drawn from the global generator
        rows, columns = table.shape
        dense = nn.Embedding(
            rows, columns, self.padding_idx, device="meta", dtype=self.weight.dtype
        ).to_empty(device=table.device)
        dense.weight.copy_(table)
        if self.zero_row is not None and self.heads:
            row = self.zero_row
            dense.weight.register_hook(lambda gradient: _row_cleared(gradient, row))
        return dense

    def extra_repr(self) -> str:
        shape = self.shape
        return f"{shape.out_features}, {shape.in_features}, gates={self.num_components}"


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


def zero_padding(embedding: nn.Embedding) -> int | None:
    """The padding token, if there is one and its vector is zero."""
    row = embedding.padding_idx
    if row is None or bool(embedding.weight[row].any()):
        return None
    return row


def without_gradient(table: Tensor, row: int | None) -> Tensor:
    """The table; its gradient is zero in one row, if that is given and exists."""
    if row is None or row >= len(table) or not (torch.is_grad_enabled() and table.requires_grad):
        return table
    rows: Tensor = _RowWithoutGradient.apply(table, row)
    return rows


class _RowWithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, row: int) -> Tensor:
        ctx.row = row
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _row_cleared(gradient, ctx.row), None


def _row_cleared(gradient: Tensor, row: int) -> Tensor:
    gradient = gradient.clone()
    gradient[row] = 0
    return gradient


def _tied_linear(embedding: nn.Embedding, bias: nn.Parameter | None) -> nn.Linear:
    rows, columns = embedding.weight.shape
    with torch.device("meta"):
        head = nn.Linear(columns, rows, bias=False)
    head.weight = embedding.weight
    head.register_parameter("bias", bias)
    return head

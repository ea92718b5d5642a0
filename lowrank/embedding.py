"""The small forms of an embedding and of an output projection: two factors, and nothing else.

E = A B with A [num_embeddings, rank] and B [rank, embedding_dim]. At the input a token's row of A
is looked up before it meets B; at the output the hidden state meets B first. E is never formed.

A is called `weight` everywhere, as in the layers it replaces: transformers ties and resizes
vocabularies by that name, and new tokens become new rows of A.

At rank 0 nothing is stored: vectors are zero, logits are the bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.linear import LowRankLinear


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
        rank: Of the factors, >= 0.
        padding_idx: Token whose row of A gets no gradient, as in nn.Embedding.
    """

    first_token = 0
    """Id of the token in row 0, for a table that holds a part of a vocabulary."""

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
        init_factors(self)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids [*batch] -> [*batch, embedding_dim]."""
        rows = F.embedding(input, self.weight, self.padding_idx)
        # a look-up keeps its dtype under autocast
        return (rows @ self.projection).to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


class LowRankHead(LowRankLinear):
    """(h Bᵀ) Aᵀ + b: an output projection, which may share A and B with a `LowRankEmbedding`.

    Args:
        in_features: Width of h.
        out_features: Tokens.
        rank: Of the factors, >= 0.
        bias: Of the logits.
    """

    first_token = 0
    """As of the embedding."""
    zero_row: int | None = None
    """Token whose row of A is zero and stays so."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, **factory: Any
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, **factory)
        init_factors(self)

    @classmethod
    def tied(
        cls, embedding: LowRankEmbedding, bias: nn.Parameter | None, zero_row: int | None = None
    ) -> LowRankHead:
        """One with the parameters of an embedding.

        Args:
            embedding: Whose A and B.
            bias: Of the logits; taken as it is, for other modules may hold it too.
            zero_row: Token whose row of A is zero and stays so.
        """
        width, tokens = embedding.embedding_dim, embedding.num_embeddings
        head = cls(width, tokens, embedding.rank, bias=False, device="meta")
        head.weight, head.projection = embedding.weight, embedding.projection
        head.register_parameter("bias", bias)
        head.zero_row, head.first_token = zero_row, embedding.first_token
        return head

    def forward(self, input: Tensor) -> Tensor:
        """[*batch, in_features] -> logits [*batch, out_features]."""
        rows = without_gradient(self.weight, self.zero_row)
        return F.linear(F.linear(input, self.projection), rows, self.bias)


def init_factors(module: LowRankEmbedding | LowRankHead, std: float = 1.0) -> None:
    """Draw both factors so that the entries of A B have a standard deviation; padding is zero."""
    if module.rank == 0:
        # there is nothing to train, and data-parallel training wants to know
        module.weight.requires_grad_(False)
        module.projection.requires_grad_(False)
        return
    nn.init.normal_(module.weight, std=std)
    nn.init.normal_(module.projection, std=module.rank**-0.5)
    if isinstance(module, LowRankEmbedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx] = 0


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
        return row_cleared(gradient, ctx.row), None


def row_cleared(gradient: Tensor, row: int) -> Tensor:
    """A copy with zeros in one row."""
    gradient = gradient.clone()
    gradient[row] = 0
    return gradient

"""What a method is given to prune: a matrix, what uses it, and what is known of its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank.density import LayerShape
from lowrank.embedding import LowRankEmbedding, LowRankHead
from lowrank.errors import LowRankError
from lowrank.factorize import Factorization, factorize, factorize_rows
from lowrank.gate import Gate
from lowrank.gated_embedding import GatedEmbedding, GatedLowRankHead, table_shape
from lowrank.linear import GatedLinear, dense_weight, layer_shape
from lowrank.moments import InputMoments
from lowrank.pruned import GatedFactors
from lowrank.surgery import Match


class Prunable(ABC):
    """A matrix of a model before anything stands for it."""

    shape: LayerShape
    modules: tuple[nn.Module, ...]
    """All modules that hold the matrix; `PrunedLayer.stand_ins` take their places, in this
    order."""

    @abstractmethod
    def factorize(self, rank: int | None, weighted: bool) -> tuple[Factorization, Tensor | None]:
        """Factors of the matrix, and the mean input that belongs to them.

        Args:
            rank: Components to keep; all by default.
            weighted: Closest in what the layer computes on its inputs, not in the weights.

        Returns:
            The factors; and if they approximate deviations from a mean input, that mean.

        Raises:
            LowRankError: What must be known of the inputs is not.
        """

    @abstractmethod
    def gated(self, gate: Gate, factors: Factorization, mean: Tensor | None) -> GatedFactors:
        """The factorized layer that stands for the matrix while its components are pruned."""

    def linear(self) -> nn.Module:
        """The linear layer, for methods that prune something other than components.

        Raises:
            LowRankError: It is none.
        """
        raise LowRankError("this method prunes linear layers only")


def prunable_shape(module: nn.Module) -> LayerShape:
    """Of the matrix, or the factors, of a module that can be pruned."""
    if isinstance(module, LowRankEmbedding | LowRankHead):
        return table_shape(module)
    return layer_shape(module)


class PrunableLinear(Prunable):
    """An nn.Linear, or transformers' Conv1D.

    Args:
        layer: The module.
        moments: Of its inputs, if they are known.
    """

    def __init__(self, layer: nn.Module, moments: InputMoments | None = None) -> None:
        self.layer, self.moments = layer, moments
        self.shape, self.modules = layer_shape(layer), (layer,)

    def factorize(self, rank: int | None, weighted: bool) -> tuple[Factorization, Tensor | None]:
        weight = dense_weight(self.layer)
        if not weighted:
            return factorize(weight, rank), None
        if self.moments is None:
            raise LowRankError("a covariance start needs the moments of the layer's inputs")
        if self.layer.bias is None:
            return factorize(weight, rank, second_moment=self.moments.second_moment), None
        factors = factorize(weight, rank, second_moment=self.moments.covariance)
        return factors, self.moments.mean

    def gated(self, gate: Gate, factors: Factorization, mean: Tensor | None) -> GatedLinear:
        return GatedLinear(self.layer, gate, factors, mean)

    def linear(self) -> nn.Module:
        return self.layer


class PrunableTable(Prunable):
    """An embedding and the output projections that are tied to it, or a factored projection alone.

    Factors are weighted by what is known: how often tokens occur, what enters the heads. Of the
    latter the second moment, not the covariance: a shift of the heads' bias would mend one of the
    two ends only.

    Args:
        table: A plain nn.Embedding, a `LowRankEmbedding`, or a `LowRankHead` with factors of its
            own.
        heads: Output projections that hold the embedding's weight.
        counts: How often each token occurs in training, [tokens].
        moments: Of the hidden states that enter the heads.
    """

    def __init__(
        self,
        table: nn.Embedding | LowRankHead,
        heads: Sequence[nn.Module] = (),
        counts: Tensor | None = None,
        moments: InputMoments | None = None,
    ) -> None:
        self.table, self.heads = table, tuple(heads)
        self.counts, self.moments = counts, moments
        self.shape, self.modules = table_shape(table), (table, *self.heads)

    def factorize(self, rank: int | None, weighted: bool) -> tuple[Factorization, Tensor | None]:
        metric = self.moments.second_moment if weighted and self.moments is not None else None
        weight, basis = self.table.weight, None
        if isinstance(self.table, LowRankEmbedding | LowRankHead):
            # A B = (A Rᵀ) Qᵀ with orthonormal Q: all is decided among the columns of A Rᵀ
            basis, triangle = torch.linalg.qr(self.table.projection.detach().double().t())
            weight = weight.detach().double() @ triangle.t()
            metric = None if metric is None else basis.t() @ metric.to(basis) @ basis
        if weighted and self.counts is not None:
            found = factorize_rows(weight, self.counts, rank, second_moment=metric)
        else:
            found = factorize(weight, rank, second_moment=metric)
        if basis is None:
            return found, None
        return replace(found, down=found.down @ basis.t()), None

    def gated(self, gate: Gate, factors: Factorization, mean: Tensor | None) -> GatedFactors:
        if isinstance(self.table, LowRankHead):
            return GatedLowRankHead(self.table, gate, factors)
        return GatedEmbedding(self.table, self.heads, gate, factors)


def prunables(
    match: Match, moments: Mapping[str, InputMoments], counts: Mapping[str, Tensor]
) -> dict[str, Prunable]:
    """What patterns selected, with what is known of each; by name."""
    found: dict[str, Prunable] = {}
    for name, layer in match.layers.items():
        if name in match.heads:
            assert isinstance(layer, nn.Embedding | LowRankHead)
            heads = match.heads[name]
            found[name] = PrunableTable(layer, heads, counts.get(name), moments.get(name))
        else:
            found[name] = PrunableLinear(layer, moments.get(name))
    return found

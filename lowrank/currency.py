"""What a budget is counted in: parameters, multiply-accumulates, or measured latency.

Parameters are the default. Multiply-accumulates differ from them where layers work on different
numbers of positions per token (a pooler sees one position per sequence) or are used several times
(shared layers). Latency is looked up in a table measured on one device, for one shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.density import Cost, FactoredShape, LayerShape, LinearCost, capped_charge
from lowrank.errors import LowRankError
from lowrank.probe import evaluating, watching


@dataclass(frozen=True, slots=True)
class ScaledCost:
    """A cost in parameters times how often each parameter is used per token."""

    base: Cost
    factor: float

    @property
    def num_units(self) -> int:
        return self.base.num_units

    @property
    def unit_cost(self) -> float:
        return self.base.unit_cost * self.factor

    @property
    def dense_cost(self) -> float:
        return self.base.dense_cost * self.factor

    def cost(self, kept: int) -> float:
        return self.base.cost(kept) * self.factor

    def expected(self, kept: float) -> float:
        return self.base.expected(kept) * self.factor

    def charge(self, kept: Tensor) -> Tensor:
        return self.base.charge(kept) * self.factor


@dataclass(frozen=True, slots=True)
class EmbeddingMacs:
    """Multiply-accumulates per token of an embedding tied to an output projection.

    Dense, a look-up is free and a position of the output costs V d. With r components a look-up
    costs r d and a position of the output r (V + d).
    """

    shape: LayerShape
    lookups: float
    """Per token of the input."""
    positions: float
    """Of the output projection, per token of the input; > 0."""

    @property
    def num_units(self) -> int:
        return self.shape.num_units

    @property
    def unit_cost(self) -> float:
        output = self.positions * self.shape.num_per_component
        return output + self.lookups * self.shape.in_features

    @property
    def dense_cost(self) -> float:
        return self.positions * self.shape.num_dense

    def cost(self, kept: int) -> float:
        return self.expected(kept)

    def expected(self, kept: float) -> float:
        return min(self.dense_cost, kept * self.unit_cost)

    def charge(self, kept: Tensor) -> Tensor:
        return capped_charge(self, kept)


@dataclass(frozen=True, slots=True)
class TableCost:
    """A cost known at every rank, for example seconds; the dense form is taken where it is no
    dearer."""

    table: tuple[float, ...]
    """Entry k is the cost of rank k; [num_units + 1], non-decreasing, 0 first, dense last."""

    def __post_init__(self) -> None:
        values = self.table
        falls = any(not a <= b for a, b in pairwise(values))  # nan too
        if len(values) < 2 or values[0] != 0 or falls or not 0 < values[-1] < math.inf:
            raise LowRankError("a table of costs must start at 0, not fall, and end above 0")

    @classmethod
    def of_factors(cls, factorized: Sequence[float], dense: float) -> TableCost:
        """From costs of the factors at rank 1, 2, ... and that of the dense layer.

        Measured times wobble: a rank is charged the least time of any rank at or above it, so the
        table does not fall and never exceeds the dense layer's.
        """
        best = dense
        falling: list[float] = []
        for value in reversed(factorized):
            best = min(best, value)
            falling.append(best)
        return cls((0.0, *reversed(falling[1:]), dense))

    @property
    def num_units(self) -> int:
        return len(self.table) - 1

    @property
    def unit_cost(self) -> float:
        """Mean over the ranks below the dense plateau."""
        below = next(k for k, value in enumerate(self.table) if value >= self.dense_cost)
        return self.dense_cost / below

    @property
    def dense_cost(self) -> float:
        return self.table[-1]

    def cost(self, kept: int) -> float:
        return self.table[kept]

    def expected(self, kept: float) -> float:
        kept = min(max(kept, 0.0), float(self.num_units))
        low = min(int(kept), self.num_units - 1)
        return self.table[low] + (kept - low) * (self.table[low + 1] - self.table[low])

    def charge(self, kept: Tensor) -> Tensor:
        """Interpolated in value; the gradient is the mean slope, for a measured table has flat
        parts that would hold no gate back."""
        kept = kept.float()
        return self.expected(float(kept.detach())) + self.unit_cost * (kept - kept.detach())


class Currency:
    """Parameters: a layer's own count stands."""

    name = "parameters"

    def cost(self, layer: str, base: Cost) -> Cost:
        """The cost of a layer's units, from their cost in parameters."""
        return base


class Macs(Currency):
    """Multiply-accumulates per token.

    Args:
        positions: Rows that each layer multiplies per token of the input (`positions_per_token`);
            for a tied embedding those of its output projection.
        lookups: Look-ups in each embedding per token of the input.
    """

    name = "macs"

    def __init__(
        self, positions: Mapping[str, float], lookups: Mapping[str, float] | None = None
    ) -> None:
        self.positions, self.lookups = dict(positions), dict(lookups or {})

    def cost(self, layer: str, base: Cost) -> Cost:
        """As of the base class.

        Raises:
            LowRankError: The layer is an embedding that nothing multiplies in: pruning it costs
                multiply-accumulates, for a dense look-up takes none.
        """
        if layer not in self.lookups:
            return ScaledCost(base, self.positions[layer])
        if isinstance(base, FactoredShape):
            # a look-up in factors is never free
            output = self.positions.get(layer, 0.0) * base.num_per_component
            return LinearCost(base.inner, output + self.lookups[layer] * base.in_features)
        if not self.positions.get(layer) or not isinstance(base, LayerShape):
            raise LowRankError(
                f"{layer!r}: a budget in multiply-accumulates cannot prune an embedding without an "
                "output projection tied to it, whose dense look-up takes none"
            )
        return EmbeddingMacs(base, self.lookups[layer], self.positions[layer])


class Latency(Currency):
    """Seconds of each layer, from a table that `lowrank.latency` measured; ranks only."""

    name = "latency"

    def __init__(self, tables: Mapping[str, TableCost]) -> None:
        self.tables = dict(tables)

    def cost(self, layer: str, base: Cost) -> Cost:
        if not isinstance(base, LayerShape):
            raise LowRankError("a latency budget needs a method that prunes ranks")
        return self.tables[layer]


def positions_per_token(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Mapping[str, Any], num_tokens: int
) -> dict[str, float]:
    """Rows that each layer multiplies, or looks up, in one pass, per token of the input; uses add
    up.

    Args:
        model: Called as `model(**inputs)` in evaluation mode.
        layers: Matrix layers or embeddings of the model.
        inputs: One batch.
        num_tokens: Tokens in that batch.

    Raises:
        LowRankError: A layer is not reached.
    """
    rows = dict.fromkeys(layers, 0)

    def count(name: str, x: Tensor) -> None:
        looked_up = isinstance(layers[name], nn.Embedding)
        rows[name] += x.numel() if looked_up else x.numel() // x.shape[-1]

    with evaluating(model), torch.no_grad(), watching(layers, count):
        model(**inputs)
    unreached = [name for name, number in rows.items() if number == 0]
    if unreached:
        raise LowRankError(f"the pass does not reach {', '.join(unreached)}")
    return {name: number / num_tokens for name, number in rows.items()}

"""Counting: what a matrix costs dense and pruned, always against the dense original.

A density is a kept fraction of the original cost, 0 < density <= 1. The cost is counted in
parameters unless somebody asks for another currency (`lowrank.currency`). Biases are not part of
it: they belong to "other", in the whole-model figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lowrank.errors import DensityError


class Cost(Protocol):
    """What a layer costs when k of its units are kept: components, input features, weights."""

    @property
    def num_units(self) -> int: ...

    @property
    def unit_cost(self) -> float:
        """Of one unit, where units are cheaper than the dense matrix."""
        ...

    @property
    def dense_cost(self) -> float: ...

    def cost(self, kept: int) -> float:
        """Non-decreasing in `kept`, 0 for none, `dense_cost` for all."""
        ...

    def expected(self, kept: float) -> float:
        """`cost`, continued to fractions of units."""
        ...

    def charge(self, kept: Tensor) -> Tensor:
        """`expected` of a scalar, float32, with a gradient that never vanishes below
        `num_units`."""
        ...


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The matrix of one layer, y = W x with W of [out_features, in_features]."""

    in_features: int
    out_features: int

    @property
    def num_dense(self) -> int:
        """Parameters of the matrix; also its multiply-accumulates per token."""
        return self.in_features * self.out_features

    @property
    def num_per_component(self) -> int:
        """Parameters of one rank-1 component."""
        return self.in_features + self.out_features

    @property
    def full_rank(self) -> int:
        return min(self.in_features, self.out_features)

    @property
    def break_even_rank(self) -> int:
        """Largest rank whose two factors are smaller than the matrix; may be 0."""
        return (self.num_dense - 1) // self.num_per_component

    @property
    def least_rank(self) -> int:
        """A layer without any component would cut its branch off."""
        return 1

    def num_parameters(self, rank: int) -> int:
        """Stored parameters at a rank: min(dense, factorized), for the cheaper form is stored."""
        return min(self.num_dense, rank * self.num_per_component)

    # the cost of rank-1 components, in parameters
    @property
    def num_units(self) -> int:
        return self.full_rank

    @property
    def unit_cost(self) -> float:
        return self.num_per_component

    @property
    def dense_cost(self) -> float:
        return self.num_dense

    def cost(self, kept: int) -> float:
        return self.num_parameters(kept)

    def expected(self, kept: float) -> float:
        return min(self.num_dense, kept * self.num_per_component)

    def charge(self, kept: Tensor) -> Tensor:
        return capped_charge(self, kept)


@dataclass(frozen=True, slots=True)
class FactoredShape(LayerShape):
    """A matrix that is two factors from the start, W = A B: nothing to break even with.

    Its densities are of the factors. All of its components may go: what is left is zero, or a bias.
    """

    inner: int
    """Components, at most the smaller side."""

    @property
    def num_dense(self) -> int:
        """Parameters of the factors."""
        return self.full_rank * self.num_per_component

    @property
    def full_rank(self) -> int:
        return self.inner

    @property
    def break_even_rank(self) -> int:
        return self.inner

    @property
    def least_rank(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Every unit costs the same and all of them cost what the dense matrix does: input features,
    rows, blocks, single weights."""

    num_units: int
    unit_cost: float

    @property
    def dense_cost(self) -> float:
        return self.num_units * self.unit_cost

    def cost(self, kept: int) -> float:
        return kept * self.unit_cost

    def expected(self, kept: float) -> float:
        return kept * self.unit_cost

    def charge(self, kept: Tensor) -> Tensor:
        return kept.float() * self.unit_cost


def capped_charge(cost: Cost, kept: Tensor) -> Tensor:
    """min(dense, factorized) in value, the factors' gradient throughout.

    With a plain minimum a layer that starts at full rank would get no gradient until it had found
    its own way below break-even.
    """
    factorized = kept.float() * cost.unit_cost
    excess = (factorized - cost.dense_cost).clamp(min=0).detach()
    return factorized - excess


def filled_up(cost: Cost, kept: int) -> int:
    """The most units that cost no more than `kept` of them, as long as the layer is not charged
    dense: ranks are priced in steps by processors and by alignment."""
    while cost.cost(kept) < cost.dense_cost and cost.cost(kept + 1) <= cost.cost(kept):
        kept += 1
    return kept


def dense_from(cost: Cost, shape: LayerShape) -> int:
    """Least number of kept units that is charged as the dense matrix, and then stored as it."""
    if isinstance(cost, LinearCost):
        return cost.num_units
    if isinstance(shape, FactoredShape):
        return cost.num_units + 1
    return next(k for k in range(cost.num_units + 1) if cost.cost(k) >= cost.dense_cost)


def check_density(density: float) -> float:
    """Return `density` unchanged, or raise DensityError unless 0 < density <= 1."""
    if not (isinstance(density, int | float) and 0 < density <= 1):
        raise DensityError(f"0 < density <= 1 must hold, got {density!r}")
    return density


def budget(costs: Iterable[Cost], density: float) -> float:
    """What a density allows to spend."""
    total = sum(cost.dense_cost for cost in costs)
    # the nudge keeps 0.3 * 10 from becoming 2.9999999999999996
    return check_density(density) * total * (1 + 1e-12)


def realized_density(kept: Mapping[str, int], costs: Mapping[str, Cost]) -> float:
    """Cost over dense cost, for layers with given numbers of kept units."""
    spent = sum(cost.cost(kept[name]) for name, cost in costs.items())
    return spent / sum(cost.dense_cost for cost in costs.values())


def expected_density(open_prob: Mapping[str, Tensor], costs: Mapping[str, Cost]) -> Tensor:
    """Expected density under independent gates, differentiable, float32.

    Args:
        open_prob: P(z > 0) per unit and layer, [num_units] each.
        costs: What the layers' units cost, under the same names.

    Returns:
        Scalar; in [0, 1].
    """
    total = sum(cost.dense_cost for cost in costs.values())
    charged = [cost.charge(open_prob[name].float().sum()) for name, cost in costs.items()]
    return torch.stack(charged).sum() / total

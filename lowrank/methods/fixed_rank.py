"""Ranks chosen before any training: uniform, or by singular values over all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowrank.currency import Currency
from lowrank.density import LayerShape, filled_up
from lowrank.magnitude import MagnitudeGate
from lowrank.methods.base import (
    Control,
    Method,
    check_choice,
    check_fraction,
    fraction_floors,
)
from lowrank.methods.start import Start, gated_start
from lowrank.projection import Projection, project
from lowrank.prunable import Prunable
from lowrank.pruned import GatedFactors

Allocation = Literal["uniform", "greedy"]


@dataclass(frozen=True, kw_only=True)
class FixedRank(Method):
    """One-shot truncation; all training comes after it."""

    allocation: Allocation = "uniform"
    """`uniform`: the same fraction of every layer's break-even rank. `greedy`: the largest singular
    values per cost over all layers, which compares layers by the size of their outputs."""
    floor_fraction: float = 0.0
    """Rank floor of each layer, of its uniform rank; for `greedy`."""
    start: Start = Start(kind="covariance")

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        check_choice("allocation", self.allocation, Allocation)
        check_fraction("floor_fraction", self.floor_fraction)

    @property
    def needs_moments(self) -> bool:  # type: ignore[override]
        return self.start.needs_moments

    def layer(self, dense: Prunable) -> GatedFactors:
        multiple = self.multiple(dense.shape)
        return gated_start(dense, MagnitudeGate, self.start, multiple=multiple)

    def control(self, layers: dict[str, GatedFactors], currency: Currency) -> FixedControl:
        return FixedControl(layers, self, currency)

    def floors(self, shapes: dict[str, LayerShape]) -> dict[str, int]:  # type: ignore[override]
        return fraction_floors(shapes, self.density, self.floor_fraction, self.min_rank)


class FixedControl(Control[GatedFactors]):
    """Nothing to drive: the scores are known from the start."""

    method: FixedRank

    def scores(self) -> dict[str, Tensor]:
        greedy = self.method.allocation == "greedy"
        return {n: self._energies(n) if greedy else self._places(n) for n in self.layers}

    def project(self) -> Projection:
        if self.method.allocation == "greedy":
            return super().project()
        # floor and at most one more: what is left over must not all go to the smallest layers
        most = {name: self._most(name) for name in self.layers}
        scores = {name: score[: most[name]] for name, score in self.scores().items()}
        projection = project(scores, self.costs, self.method.density, self.floors)
        keep = {}
        for name, mask in projection.keep.items():
            missing = self.layers[name].num_components - len(mask)
            keep[name] = torch.cat([mask, torch.zeros(missing, dtype=torch.bool)])
        return Projection(keep, projection.density)

    def _most(self, name: str) -> int:
        """The floor or one more than the uniform rank, and whatever comes free with that."""
        cost = self.costs[name]
        return filled_up(cost, min(max(self._uniform(name) + 1, self.floors[name]), cost.num_units))

    def _uniform(self, name: str) -> int:
        """Rank that is the density's fraction of the layer's break-even rank, rounded down; all of
        them at density 1."""
        cost = self.costs[name]
        if self.method.density == 1:
            return cost.num_units
        return int(self.method.density * cost.dense_cost / cost.unit_cost)

    def _energies(self, name: str) -> Tensor:
        # squares: float32 would be infinite or zero for large or small weights
        return (self.layers[name].energy / self.costs[name].unit_cost).cpu()

    def _places(self, name: str) -> Tensor:
        """Every layer's k-th component comes at the same fraction of its break-even rank."""
        cost = self.costs[name]
        break_even = cost.dense_cost / cost.unit_cost
        return -(torch.arange(self.layers[name].num_components) + 1).float() / break_even

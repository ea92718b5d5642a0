"""Exact projection onto the budget: which units of each layer stay.

Scores say which units (components, input features, weights) matter, over all layers together; the
projection keeps the best that fit. After it the model is at or under the budget, and no unit
that was left out would still fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.currency import ScaledCost
from lowrank.density import Cost, LinearCost, budget, realized_density
from lowrank.errors import DensityError


@dataclass(frozen=True, slots=True)
class Projection:
    """Kept units per layer."""

    keep: dict[str, Tensor]
    """Bool [num_units] each."""
    density: float
    """Realized: cost over dense cost."""

    @property
    def ranks(self) -> dict[str, int]:
        """Number of kept units; for factorized layers their rank."""
        return {name: int(mask.sum()) for name, mask in self.keep.items()}


def project(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    density: float,
    floors: Mapping[str, int] | int = 1,
) -> Projection:
    """Keep the highest-scoring units of all layers that fit the density.

    A unit's cost is what keeping it adds. Past break-even a factorized layer is stored dense and
    further components of it are free, so such a layer either stays below break-even or comes back
    whole.

    Args:
        scores: Importance per unit, [num_units] each; higher stays. Finite.
        costs: What the layers' units cost, under the same names.
        density: Target, 0 < density <= 1.
        floors: Units that every layer keeps, its best ones; one number for all or one for each. A
            layer without any would cut its branch off.

    Raises:
        DensityError: The target is below what the floors need; the message gives the least.
    """
    kept = floor_units(costs, density, floors)
    if all(_is_linear(cost) for cost in costs.values()):
        keep = _take_by_threshold(scores, costs, density, kept)
    else:
        keep = _take_in_turn(scores, costs, density, kept)
    counts = {name: int(mask.sum()) for name, mask in keep.items()}
    return Projection(keep, realized_density(counts, costs))


def floor_units(
    costs: Mapping[str, Cost], density: float, floors: Mapping[str, int] | int = 1
) -> dict[str, int]:
    """The number of units that every layer keeps whatever its scores.

    Raises:
        DensityError: These alone exceed the density; the message gives the least.
    """
    wanted = dict.fromkeys(costs, floors) if isinstance(floors, int) else floors
    kept = {name: min(wanted[name], cost.num_units) for name, cost in costs.items()}
    spent = sum(costs[name].cost(count) for name, count in kept.items())
    if spent > budget(costs.values(), density):
        total = sum(cost.dense_cost for cost in costs.values())
        # rounded up, so that the number in the message does work
        least = math.ceil(spent / total * 1e6) / 1e6
        floor = floors if isinstance(floors, int) else f"{min(kept.values())} or more"
        raise DensityError(
            f"density >= {least:.6f} must hold to keep each of {len(costs)} layers at its floor, "
            f"{floor} of its units, got {density}"
        )
    return kept


def _is_linear(cost: Cost) -> bool:
    # by class: a table of any shape has the same mean and the same ends
    return isinstance(cost.base if isinstance(cost, ScaledCost) else cost, LinearCost)


def _take_in_turn(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    density: float,
    kept: dict[str, int],
) -> dict[str, Tensor]:
    """One unit after the other, best first; costs may have any non-decreasing form."""
    allowed = budget(costs.values(), density)
    kept = dict(kept)
    spent = sum(costs[name].cost(count) for name, count in kept.items())
    order = {
        name: torch.argsort(score, descending=True, stable=True).tolist()
        for name, score in scores.items()
    }
    closed: set[str] = set()
    for name in _by_score(scores, order, kept):
        if name in closed:
            continue
        cost, count = costs[name], kept[name]
        more = cost.cost(count + 1) - cost.cost(count)
        if spent + more <= allowed:
            kept[name], spent = count + 1, spent + more
        else:
            # the layer's later units cannot come before this one, and what is left only shrinks
            closed.add(name)
    return {name: _mask(order[name], kept[name]) for name in costs}


def _by_score(
    scores: Mapping[str, Tensor], order: Mapping[str, list[int]], kept: Mapping[str, int]
) -> list[str]:
    """Layer names, one per unit beyond the floor, best unit first.

    Within a layer units come in order of score, so the name alone says which one is next.
    """
    values = {name: score.tolist() for name, score in scores.items()}
    entries = [
        (-values[name][index], number, position, name)
        for number, name in enumerate(scores)
        for position, index in enumerate(order[name])
        if position >= kept[name]
    ]
    return [name for *_, name in sorted(entries)]


def _mask(order: list[int], count: int) -> Tensor:
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def _take_by_threshold(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    density: float,
    kept: Mapping[str, int],
) -> dict[str, Tensor]:
    """The same choice for units of constant cost, in whole arrays: there may be millions."""
    names = list(costs)
    sizes = [costs[name].num_units for name in names]
    flat = torch.cat([_raise_floor(scores[name].double(), kept[name]) for name in names])
    price = torch.cat(
        [torch.full((c.num_units,), c.unit_cost, dtype=torch.float64) for c in costs.values()]
    )
    order = torch.argsort(flat, descending=True, stable=True)
    taken = torch.zeros(len(flat), dtype=torch.bool)
    left = budget(costs.values(), density)
    while len(order):
        # what is dearer than the rest of the budget will never fit again
        order = order[price[order] <= left]
        fits = int((price[order].cumsum(0) <= left).sum())
        taken[order[:fits]] = True
        left -= float(price[order[:fits]].sum())
        order = order[fits:]
    return dict(zip(names, taken.split(sizes), strict=True))


def _raise_floor(score: Tensor, count: int) -> Tensor:
    """Scores with the best `count` above everything else."""
    score = score.flatten().clone()
    score[torch.argsort(score, descending=True, stable=True)[:count]] = math.inf
    return score

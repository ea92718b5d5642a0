"""Exact projection onto the budget: which components stay.

The gates say which components matter, over all layers together; the projection keeps the best
that fit. After it the stored parameters are at or under the budget, and no component that was
left out would still fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.density import LayerShape, budget, realized_density
from lowrank.errors import DensityError


@dataclass(frozen=True, slots=True)
class Projection:
    """Kept components per layer."""

    keep: dict[str, Tensor]
    """Bool [full_rank] each."""
    density: float
    """Realized: stored over dense parameters."""

    @property
    def ranks(self) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in self.keep.items()}


def project(
    scores: Mapping[str, Tensor],
    shapes: Mapping[str, LayerShape],
    density: float,
    min_rank: int = 1,
) -> Projection:
    """Keep the highest-scoring components of all layers that fit the density.

    A component's cost is what storing it adds. Past break-even a layer is stored dense and
    further components of it are free, so a layer either stays below break-even or comes back
    whole.

    Args:
        scores: Importance per component, [full_rank] each; higher stays. Finite.
        shapes: Layer shapes under the same names.
        density: Target, 0 < density <= 1.
        min_rank: Components that every layer keeps, its best ones: a layer without any would
            cut its branch off.

    Raises:
        DensityError: The target is below what `min_rank` needs; the message gives the least.
    """
    allowed = budget(shapes.values(), density)
    ranks = floor_ranks(shapes, density, min_rank)
    spent = sum(shapes[name].num_parameters(rank) for name, rank in ranks.items())
    order = {
        name: torch.argsort(score, descending=True, stable=True).tolist()
        for name, score in scores.items()
    }
    closed: set[str] = set()
    for name in _by_score(scores, order, ranks):
        if name in closed:
            continue
        shape, rank = shapes[name], ranks[name]
        cost = shape.num_parameters(rank + 1) - shape.num_parameters(rank)
        if spent + cost <= allowed:
            ranks[name], spent = rank + 1, spent + cost
        else:
            # the next one costs as much until break-even, and what is left only shrinks
            closed.add(name)
    keep = {name: _mask(order[name], ranks[name]) for name in shapes}
    return Projection(keep, realized_density(ranks, shapes))


def floor_ranks(
    shapes: Mapping[str, LayerShape], density: float, min_rank: int = 1
) -> dict[str, int]:
    """The rank that every layer keeps whatever its scores.

    Raises:
        DensityError: These ranks alone exceed the density; the message gives the least.
    """
    ranks = {name: min(min_rank, shape.full_rank) for name, shape in shapes.items()}
    spent = sum(shapes[name].num_parameters(rank) for name, rank in ranks.items())
    if spent > budget(shapes.values(), density):
        total = sum(shape.num_dense for shape in shapes.values())
        # rounded up, so that the number in the message does work
        least = math.ceil(spent / total * 1e6) / 1e6
        raise DensityError(
            f"density >= {least:.6f} must hold to keep rank {min_rank} in each of "
            f"{len(shapes)} layers, got {density}"
        )
    return ranks


def _by_score(
    scores: Mapping[str, Tensor], order: Mapping[str, list[int]], ranks: Mapping[str, int]
) -> list[str]:
    """Layer names, one per component beyond the floor, best component first.

    Within a layer components come in order of score, so the name alone says which one is next.
    """
    entries = [
        (-float(scores[name][index]), number, position, name)
        for number, name in enumerate(scores)
        for position, index in enumerate(order[name])
        if position >= ranks[name]
    ]
    return [name for *_, name in sorted(entries)]


def _mask(order: list[int], rank: int) -> Tensor:
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:rank]] = True
    return mask

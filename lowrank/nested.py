"""Projections that lie within each other: one gated run gives a model for any density.

What stays at a lower density is part of what stays at every higher one, so the components have an
order in which they go, and a rank for each layer can be read off at any density on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lowrank.density import Cost
from lowrank.projection import Projection, project
from lowrank.pruner import Pruner


def project_within(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    density: float,
    floors: Mapping[str, int],
    within: Mapping[str, Tensor],
) -> Projection:
    """`project`, where some components have gone already.

    Args:
        scores: Importance per component, [num_components] each, of factorized layers.
        costs: Of the layers' components.
        density: Target, 0 < density <= 1.
        floors: Components that every layer keeps.
        within: Masks of what there is to choose from, bool [num_components] each, at least the
            floor of a layer.

    Raises:
        DensityError: The target is below what the floors need.
    """
    left = {name: scores[name][mask] for name, mask in within.items()}
    least = {name: min(floors[name], len(score)) for name, score in left.items()}
    found = project(left, costs, density, least)
    keep = {}
    for name, mask in within.items():
        keep[name] = torch.zeros_like(mask)
        keep[name][mask] = found.keep[name]
    return Projection(keep, found.density)


def compacted_copy(pruner: Pruner, projection: Projection) -> nn.Module:
    """The small model of a projection, while the pruner goes on with its own."""
    model, layers = copy.deepcopy((pruner.model, pruner.layers))
    device = next(model.parameters()).device
    keep = {name: mask.to(device) for name, mask in projection.keep.items()}
    return pruner.method.compact(model, layers, keep)


def nested_projections(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    densities: Sequence[float],
    floors: Sequence[Mapping[str, int]],
) -> list[Projection]:
    """Projections onto several densities, each within the one before.

    An exact projection fills up what is left of the budget with components that are cheap enough,
    so those of one and the same order need not be nested by themselves.

    Args:
        scores: Importance per component, [num_components] each, of factorized layers.
        costs: Of the layers' components.
        densities: From high to low.
        floors: Per density the components that each layer keeps; none more than before.

    Raises:
        DensityError: A target is below what its floors need.
    """
    if any(one <= other for one, other in pairwise(densities)):
        raise ValueError(f"densities must fall, got {list(densities)}")
    within = {name: torch.ones(len(score), dtype=torch.bool) for name, score in scores.items()}
    found = []
    for density, floor in zip(densities, floors, strict=True):
        found.append(project_within(scores, costs, density, floor, within))
        within = found[-1].keep
    return found

"""Where a front bends most: the point from which every objective gets dear."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.front.dominance import Losses, checked, pareto_front


def knee_distances(loss_values: ArrayLike) -> Losses:
    """How far each front point bulges towards the ideal point.

    Every objective of the front is scaled to [0, 1]. The distance is the signed one to the
    hyperplane through the corners that are worst in one objective and best in all others,
    `(1 - sum of the scaled losses) / sqrt(m)`. With two objectives these corners are the two
    ends of the front, and this is the usual distance to the line between them (Das 1999). With
    three, the ends of a front need not span a plane (the smallest model is often the fastest),
    the corners always do. Objectives that do not vary count as 0.

    Returns:
        [n]; NaN for rows that are off the front or infinite.
    """
    losses = checked(loss_values)
    usable = pareto_front(losses) & np.isfinite(losses).all(axis=1)
    distances = np.full(len(losses), np.nan)
    if usable.any():
        front = losses[usable]
        low, span = front.min(axis=0), np.ptp(front, axis=0)
        scaled = (front - low) / np.where(span > 0, span, 1.0)
        distances[usable] = (1 - scaled.sum(axis=1)) / math.sqrt(losses.shape[1])
    return distances


def knee(loss_values: ArrayLike) -> int:
    """The row with the greatest of `knee_distances`, the first of equals."""
    distances = knee_distances(loss_values)
    if np.isnan(distances).all():
        raise ValueError("a knee needs a front with a finite point")
    return int(np.nanargmax(distances))

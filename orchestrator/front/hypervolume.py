"""How much a front covers, up to a reference point."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.front.dominance import Losses, checked


def hypervolume(loss_values: ArrayLike, reference: ArrayLike) -> float:
    """The measure of what the rows dominate, up to a reference point (Zitzler and Thiele 1998).

    Rows that are not better than the reference in every objective add nothing. The result is
    exact, and infinite if a row or the reference is.

    Args:
        loss_values: [n, m] with m = 2 or 3.
        reference: [m], the worst value of each objective that still counts.
    """
    losses = checked(loss_values)
    worst = np.asarray(reference, dtype=np.float64)
    if losses.shape[1] not in (2, 3) or worst.shape != losses.shape[1:]:
        raise ValueError(
            "loss_values [n, m] and reference [m] with m = 2 or 3 are needed, "
            f"got {losses.shape} and {worst.shape}"
        )
    if np.isnan(worst).any():
        raise ValueError(f"the reference must not be NaN, got {worst.tolist()}")
    inside = losses[(losses < worst).all(axis=1)]
    if len(inside) and not (np.isfinite(inside).all() and np.isfinite(worst).all()):
        return math.inf
    if losses.shape[1] == 2:
        # a plane is a body of height one
        inside = np.column_stack([inside, np.zeros(len(inside))])
        worst = np.append(worst, 1.0)
    return _swept_volume(inside, worst)


def _swept_volume(points: Losses, worst: Losses) -> float:
    """Sweep the third objective: each slab is the area of the staircase so far, times its height.

    `xs` rises and `ys` falls along the staircase of the points met so far. A point enters and
    leaves it at most once, so the sweep takes O(n log n) comparisons.
    """
    xs, ys = [-math.inf, float(worst[0])], [float(worst[1]), -math.inf]
    volume = area = height = 0.0
    for x, y, z in points[np.argsort(points[:, 2], kind="stable")].tolist():
        volume += area * (z - height)
        height = z
        area += _insert(xs, ys, x, y)
    return volume + area * (float(worst[2]) - height)


def _insert(xs: list[float], ys: list[float], x: float, y: float) -> float:
    """Put (x, y) on the staircase, drop the steps that it dominates, return the area gained."""
    first = bisect_left(xs, x)
    if ys[first - 1] <= y or (xs[first] == x and ys[first] <= y):
        return 0.0
    gained, left, top, last = 0.0, x, ys[first - 1], first
    while ys[last] >= y:
        gained += (xs[last] - left) * (top - y)
        left, top, last = xs[last], ys[last], last + 1
    gained += (xs[last] - left) * (top - y)
    xs[first:last], ys[first:last] = [x], [y]
    return gained

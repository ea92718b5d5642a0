"""Pareto fronts on plain arrays. Every objective is a loss: smaller is better, always.

`loss_values` is the one place where the sign of a metric is normalised. Conventions of all
functions here, for loss values of shape [n, m]:

- a row dominates another if it is no larger in every column and smaller in one;
- equal rows do not dominate each other, so all copies of a front point are on the front: two
  trials with the same figures are equally good, and `selection` decides between them;
- a row with a NaN was not measured: it is never on the front and dominates nothing;
- infinities are ordinary, very bad or very good, values.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from orchestrator.records import ModelRecord

Losses = NDArray[np.float64]


def loss_values(
    records: Sequence[ModelRecord], dense: ModelRecord, batch: int | None = None
) -> Losses:
    """The objectives of a task's models.

    Args:
        records: finished models of one task.
        dense: their reference.
        batch: of the latency; by default the largest that any record has measured.

    Returns:
        Shape [n, 3]: loss of validation quality against dense in the metric's unit (negative is
        better than dense), parameters of the whole model, paired latency in milliseconds. One
        that is missing is NaN; if none was measured, the column is left out: [n, 2].
    """
    for record in records:
        if record.metric != dense.metric:
            raise ValueError(
                f"models of one front share a metric, got {record.metric.name!r} "
                f"and {dense.metric.name!r} (dense)"
            )
    sign = -1.0 if dense.metric.higher_is_better else 1.0
    batch = largest_batch(records) if batch is None else batch
    latencies = paired_latencies_ms(records, batch)
    rows = [
        (sign * (r.quality - dense.quality), r.size.num_parameters, latency)
        for r, latency in zip(records, latencies, strict=True)
    ]
    losses = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return losses[:, :2] if np.isnan(losses[:, 2]).all() else losses


def paired_latencies_ms(records: Sequence[ModelRecord], batch: int | None) -> list[float]:
    """Latencies that compare across models measured at different times.

    The machine's load moves the raw latency of a model, but hardly its ratio to the dense model
    timed beside it: latency = median dense latency over all records / speed-up. NaN where a model
    was not measured at this batch.
    """
    dense = [row.dense_ms for record in records for row in record.speed if row.batch == batch]
    if not dense:
        return [math.nan] * len(records)
    reference = float(np.median(dense))
    return [reference / record.speedup(batch) for record in records]


def largest_batch(records: Sequence[ModelRecord]) -> int | None:
    """The largest batch at which any record was measured."""
    return max((row.batch for record in records for row in record.speed), default=None)


def pareto_front(loss_values: ArrayLike) -> NDArray[np.bool_]:
    """Which rows no other row dominates.

    Args:
        loss_values: [n, m], m >= 1.

    Returns:
        Mask, [n].
    """
    return nondomination_rank(loss_values) == 0


def nondomination_rank(loss_values: ArrayLike) -> NDArray[np.int64]:
    """Rank 0 is the front, rank 1 the front of the rest, and so on (Deb et al. 2002, NSGA-II).

    Args:
        loss_values: [n, m], m >= 1.

    Returns:
        [n]. Rows with a NaN get rank n, behind every row that can be judged.
    """
    losses = _checked(loss_values)
    ranks = np.full(len(losses), len(losses), dtype=np.int64)
    known = ~np.isnan(losses).any(axis=1)
    # adding 0.0 makes -0.0 and 0.0 the same row
    unique, inverse = np.unique(losses[known] + 0.0, axis=0, return_inverse=True)
    ranks[known] = _ranks_of_sorted(unique)[inverse.reshape(-1)]
    return ranks


def _ranks_of_sorted(rows: Losses) -> NDArray[np.int64]:
    """Ranks of distinct rows in lexicographic order.

    In that order only an earlier row can dominate, and it does if the columns after the first
    are no larger. The rank of a row is the length of the longest chain of rows above it.
    """
    ranks = np.zeros(len(rows), dtype=np.int64)
    columns = np.ascontiguousarray(rows[:, 1:].T)
    for i in range(1, len(rows)):
        dominates = np.ones(i, dtype=bool)
        for column in columns:
            dominates &= column[:i] <= column[i]
        ranks[i] = np.max(ranks[:i], where=dominates, initial=-1) + 1
    return ranks


def hypervolume(loss_values: ArrayLike, reference: ArrayLike) -> float:
    """The measure of what the rows dominate, up to a reference point (Zitzler and Thiele 1998).

    Rows that are not better than the reference in every objective add nothing. The result is
    exact, and infinite if a row or the reference is.

    Args:
        loss_values: [n, m] with m = 2 or 3.
        reference: [m], the worst value of each objective that still counts.
    """
    losses = _checked(loss_values)
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
    losses = _checked(loss_values)
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


def _checked(loss_values: ArrayLike) -> Losses:
    losses = np.asarray(loss_values, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[1] < 1:
        raise ValueError(f"loss_values must be [n, m] with m >= 1, got shape {losses.shape}")
    return losses

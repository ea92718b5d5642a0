"""Pareto fronts on plain arrays. Every objective is a loss: smaller is better, always.

Conventions of all functions in this package, for loss values of shape [n, m]:

- a row dominates another if it is no larger in every column and smaller in one;
- equal rows do not dominate each other, so all copies of a front point are on the front: two
  trials with the same figures are equally good, and `selection` decides between them;
- a row with a NaN was not measured: it is never on the front and dominates nothing;
- infinities are ordinary, very bad or very good, values.

Sorting is moocore's, in C: 100,000 rows take tenths of a second. Version 0.3.2 is right on finite
values only: it takes a NaN for a very good one, drops rows with an infinity from fronts of three
objectives, and minus infinity ends the process. So it is given the order of the values in each
column, which is all that dominance depends on, and no row with a NaN.
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.front.staircase import Staircase

Losses = NDArray[np.float64]


def pareto_front(loss_values: ArrayLike) -> NDArray[np.bool_]:
    """Which rows no other row dominates.

    Args:
        loss_values: [n, m], m >= 1.

    Returns:
        Mask, [n].
    """
    losses = checked(loss_values)
    front = _is_measured(losses)
    # `keep_weakly` keeps every copy of a row
    front[front] = moocore.is_nondominated(_places(losses[front]), keep_weakly=True)
    return front


def nondomination_rank(loss_values: ArrayLike) -> NDArray[np.int64]:
    """Rank 0 is the front, rank 1 the front of the rest, and so on (Deb et al. 2002, NSGA-II).

    Args:
        loss_values: [n, m], m >= 1.

    Returns:
        [n]. Rows with a NaN get rank n, behind every row that can be judged.
    """
    losses = checked(loss_values)
    ranks = np.full(len(losses), len(losses), dtype=np.int64)
    known = _is_measured(losses)
    ranks[known] = moocore.pareto_rank(_places(losses[known]))
    return ranks


def epsilon_front(loss_values: ArrayLike, epsilon: ArrayLike) -> NDArray[np.bool_]:
    """The front and what is as good within a tolerance (after Laumanns et al. 2002).

    A row falls out only if another one is better by at least epsilon in every objective, with 0
    for "no worse". With epsilon 0 everywhere this is `pareto_front`.

    Args:
        loss_values: [n, m] with m = 2 or 3.
        epsilon: [m], in the units of the columns, finite and not negative.

    Returns:
        Mask, [n], with at least the rows of the front.
    """
    losses, tolerance = checked(loss_values), np.asarray(epsilon, dtype=np.float64)
    if losses.shape[1] not in (2, 3) or tolerance.shape != losses.shape[1:]:
        raise ValueError(
            "loss_values [n, m] and epsilon [m] with m = 2 or 3 are needed, "
            f"got {losses.shape} and {tolerance.shape}"
        )
    if not (np.isfinite(tolerance).all() and (tolerance >= 0).all()):
        raise ValueError(f"epsilon must be finite and >= 0, got {tolerance.tolist()}")
    front = pareto_front(losses)
    if not tolerance.any():
        return front
    within = _is_measured(losses)
    # a row that is beaten so far is so by a row of the front, which dominates what beats it
    within[within] = ~_covered(losses[front], losses[within] - tolerance)
    # an infinity less epsilon is itself, and nothing beats itself
    return within | front


def _covered(front: Losses, rows: Losses) -> NDArray[np.bool_]:
    """Which of `rows` have a row of `front` that is no larger in any column.

    Both are gone through in the order of the last column; what was met of the front is kept as the
    staircase of the others, so that n rows take O(n log n) comparisons.
    """
    if front.shape[1] == 2:
        front, rows = (np.insert(each, 0, 0.0, axis=1) for each in (front, rows))
    covered, stairs, met = np.zeros(len(rows), dtype=bool), Staircase(), 0
    points = front[np.argsort(front[:, 2], kind="stable")].tolist()
    for index in np.argsort(rows[:, 2], kind="stable").tolist():
        x, y, z = rows[index].tolist()
        while met < len(points) and points[met][2] <= z:
            stairs.add(points[met][0], points[met][1])
            met += 1
        covered[index] = stairs.covers(x, y)
    return covered


def _is_measured(losses: Losses) -> NDArray[np.bool_]:
    """Which rows have no NaN."""
    return np.asarray(~np.isnan(losses).any(axis=1))


def _places(losses: Losses) -> Losses:
    """Each value's place among the different values of its column, 0 for the smallest."""
    places = [np.unique(column + 0.0, return_inverse=True)[1] for column in losses.T]
    return np.column_stack(places).astype(np.float64)


def checked(loss_values: ArrayLike) -> Losses:
    """As [n, m] with m >= 1.

    Raises:
        ValueError: Of another shape.
    """
    losses = np.asarray(loss_values, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[1] < 1:
        raise ValueError(f"loss_values must be [n, m] with m >= 1, got shape {losses.shape}")
    return losses

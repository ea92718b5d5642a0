"""Pareto fronts on plain arrays. Every objective is a loss: smaller is better, always.

Conventions of all functions in this package, for loss values of shape [n, m]:

- a row dominates another if it is no larger in every column and smaller in one;
- equal rows do not dominate each other, so all copies of a front point are on the front: two
  trials with the same figures are equally good, and `selection` decides between them;
- a row with a NaN was not measured: it is never on the front and dominates nothing;
- infinities are ordinary, very bad or very good, values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Losses = NDArray[np.float64]


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
    losses = checked(loss_values)
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


def checked(loss_values: ArrayLike) -> Losses:
    """As [n, m] with m >= 1.

    Raises:
        ValueError: Of another shape.
    """
    losses = np.asarray(loss_values, dtype=np.float64)
    if losses.ndim != 2 or losses.shape[1] < 1:
        raise ValueError(f"loss_values must be [n, m] with m >= 1, got shape {losses.shape}")
    return losses

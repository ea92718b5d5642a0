"""Fronts and ranks against brute force, on small integers so that ties occur."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings

from orchestrator.front.dominance import nondomination_rank, pareto_front
from orchestrator.front.hypervolume import hypervolume
from tests.orchestrator.front.draws import extended, losses


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    """NaN compares as false, so a row with a NaN dominates nothing and is not dominated."""
    return bool((a <= b).all() and (a < b).any())


def brute_force_front(points: np.ndarray) -> np.ndarray:
    return np.array(
        [not np.isnan(p).any() and not any(dominates(q, p) for q in points) for p in points],
        dtype=bool,
    )


def brute_force_rank(points: np.ndarray) -> np.ndarray:
    """Peel off one front after the other."""
    ranks = np.full(len(points), len(points))
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    rank = 0
    while len(left):
        front = brute_force_front(points[left])
        ranks[left[front]] = rank
        left, rank = left[~front], rank + 1
    return ranks


@settings(deadline=None, max_examples=200)
@given(losses((1, 4), extended))
def test_front_and_rank_agree_with_brute_force(points: np.ndarray) -> None:
    assert pareto_front(points).tolist() == brute_force_front(points).tolist()
    assert nondomination_rank(points).tolist() == brute_force_rank(points).tolist()


def test_textbook_front() -> None:
    #  3 | a . . .      a and d are the ends, b is between them,
    #  2 | . b . e      e is dominated by b, f by b and d
    #  1 | . . . f
    #  0 | . . d .
    points = [(0, 3), (1, 2), (2, 0), (3, 2), (3, 1)]
    assert pareto_front(points).tolist() == [True, True, True, False, False]
    assert nondomination_rank(points).tolist() == [0, 0, 0, 2, 1]


def test_all_copies_of_a_front_point_are_on_the_front() -> None:
    assert pareto_front([[1, 2], [1, 2], [2, 2]]).tolist() == [True, True, False]


def test_nan_is_off_the_front_and_dominates_nothing() -> None:
    points = [[math.nan, 0.0], [1.0, 1.0]]
    assert pareto_front(points).tolist() == [False, True]
    assert nondomination_rank(points).tolist() == [2, 0]
    assert not pareto_front([[math.nan, math.nan]]).any()


def test_infinities_are_ordinary_values() -> None:
    assert pareto_front([[math.inf, 0], [0, math.inf], [math.inf, math.inf]]).tolist() == [
        True, True, False,
    ]  # fmt: skip
    assert pareto_front([[-math.inf, 5], [0, 5]]).tolist() == [True, False]


def test_no_rows_and_bad_shapes() -> None:
    assert pareto_front(np.empty((0, 3))).tolist() == []
    for shape in ((3,), (2, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="must be"):
            pareto_front(np.zeros(shape))


@pytest.mark.parametrize("everything_on_the_front", [False, True])
def test_ten_thousand_points_take_little_time(everything_on_the_front: bool) -> None:
    points = np.random.default_rng(0).random((10_000, 3))
    if everything_on_the_front:
        points[:, 2] = 2 - points[:, :2].sum(axis=1)
    start = time.perf_counter()
    front = pareto_front(points)
    volume = hypervolume(points, [2, 2, 2])
    assert time.perf_counter() - start < 5  # about 0.3 s on an idle core
    assert front.all() == everything_on_the_front
    assert 1 < volume < 8

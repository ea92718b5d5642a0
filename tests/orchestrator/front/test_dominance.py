"""Fronts and ranks against brute force, on small integers so that ties occur."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.front.dominance import epsilon_front, nondomination_rank, pareto_front
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
def test_a_hundred_thousand_points(everything_on_the_front: bool) -> None:
    points = np.random.default_rng(0).random((100_000, 3))
    if everything_on_the_front:
        points[:, 2] = 2 - points[:, :2].sum(axis=1)
    front, ranks = pareto_front(points), nondomination_rank(points)
    assert front.all() == everything_on_the_front
    assert (front == (ranks == 0)).all()
    assert 1 < hypervolume(points, [2, 2, 2]) < 8
    near = epsilon_front(points, [0.01, 0.01, 0.01])
    assert near[front].all()
    assert near.sum() > front.sum() or everything_on_the_front


# --------------------------------------------------------------------------- epsilon


def brute_force_epsilon_front(points: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    def beaten(p: np.ndarray) -> bool:
        return any(dominates(q, p) and (q <= p - epsilon).all() for q in points)

    return np.array([not np.isnan(p).any() and not beaten(p) for p in points], dtype=bool)


@settings(deadline=None, max_examples=300)
@given(losses((2, 3), extended), st.tuples(*[st.integers(0, 2)] * 3))
def test_epsilon_front_agrees_with_brute_force(points: np.ndarray, epsilon: tuple) -> None:
    tolerance = np.array(epsilon[: points.shape[1]], dtype=float)
    expected = brute_force_epsilon_front(points, tolerance).tolist()
    assert epsilon_front(points, tolerance).tolist() == expected


def test_a_tolerance_takes_in_what_is_nearly_as_good() -> None:
    # the second is worse than the first in both, by 0.1 in the quality and 5 in size
    points = [[1.0, 100.0], [1.1, 105.0], [1.5, 200.0]]
    assert epsilon_front(points, [0, 0]).tolist() == [True, False, False]
    assert epsilon_front(points, [0.2, 0]).tolist() == [True, True, False]
    assert epsilon_front(points, [0, 6]).tolist() == [True, True, False]
    assert epsilon_front(points, [0.1, 5]).tolist() == [True, False, False]  # at least epsilon


@pytest.mark.parametrize(
    ("shape", "epsilon", "says"),
    [
        ((2, 4), [0] * 4, "m = 2 or 3"),
        ((2, 2), [0], "m = 2 or 3"),
        ((2, 2), [-1, 0], ">= 0"),
        ((2, 2), [math.nan, 0], "finite"),
        ((2, 2), [math.inf, 0], "finite"),
    ],
)
def test_epsilon_front_states_its_rules(shape: tuple, epsilon: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        epsilon_front(np.zeros(shape), epsilon)

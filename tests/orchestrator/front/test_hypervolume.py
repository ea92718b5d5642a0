"""Volumes against counted cells and closed forms."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.front.dominance import pareto_front
from orchestrator.front.hypervolume import hypervolume
from tests.orchestrator.front.draws import losses, small


def count_cells(points: np.ndarray, reference: tuple[int, ...]) -> int:
    """Unit cells that a point dominates: for integers, the volume."""
    cells = product(*(range(r) for r in reference))
    return sum(any((p <= cell).all() for p in points) for cell in cells)


@settings(deadline=None, max_examples=200)
@given(losses((2, 2), small), st.tuples(*[st.integers(1, 5)] * 2))
def test_area_agrees_with_counted_cells(points: np.ndarray, reference: tuple[int, ...]) -> None:
    assert hypervolume(points, reference) == pytest.approx(count_cells(points, reference))


@settings(deadline=None, max_examples=200)
@given(losses((3, 3), small), st.tuples(*[st.integers(1, 5)] * 3))
def test_volume_agrees_with_counted_cells(points: np.ndarray, reference: tuple[int, ...]) -> None:
    assert hypervolume(points, reference) == pytest.approx(count_cells(points, reference))


@settings(deadline=None, max_examples=50)
@given(losses((4, 4), small), st.tuples(*[st.integers(1, 4)] * 4))
def test_four_objectives_agree_with_counted_cells(
    points: np.ndarray, reference: tuple[int, ...]
) -> None:
    assert hypervolume(points, reference) == pytest.approx(count_cells(points, reference))


@settings(deadline=None)
@given(losses((2, 3), small))
def test_only_the_front_has_volume(points: np.ndarray) -> None:
    reference = [5.0] * points.shape[1]
    front = points[pareto_front(points)]
    assert hypervolume(points, reference) == pytest.approx(hypervolume(front, reference))


def test_closed_forms() -> None:
    assert hypervolume([[0, 0]], [2, 3]) == 6
    assert hypervolume([[0, 0, 0]], [2, 3, 4]) == 24
    n = 100  # a staircase of n steps below the diagonal
    steps = [(i / n, (n - 1 - i) / n) for i in range(n)]
    assert hypervolume(steps, [1, 1]) == pytest.approx((n + 1) / (2 * n))
    prism = [(x, y, 0.5) for x, y in steps]
    assert hypervolume(prism, [1, 1, 1]) == pytest.approx((n + 1) / (4 * n))


def test_volume_of_what_lies_outside_is_zero_and_of_infinity_infinite() -> None:
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0
    assert hypervolume([[1, 0], [2, 2], [math.nan, 0], [math.inf, 0]], [1, 1]) == 0
    assert hypervolume([[-math.inf, 0]], [1, 1]) == math.inf
    assert hypervolume([[0, 0]], [math.inf, 1]) == math.inf


@pytest.mark.parametrize(
    ("points", "reference", "says"),
    [
        ([[0.0]], [1], "m >= 2"),
        ([[0.0, 0.0]], [1, 1, 1], "m >= 2"),
        ([[0.0, 0.0]], [1, math.nan], "must not be NaN"),
    ],
)
def test_hypervolume_states_its_rules(points: list, reference: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hypervolume(points, reference)

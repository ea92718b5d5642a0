"""The knee of a front."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.front.knee import knee, knee_distances
from tests.orchestrator.front.draws import extended, losses


def test_knee_is_farthest_from_the_line_between_the_ends() -> None:
    points = np.array([[0, 10], [1, 3], [4, 2], [10, 0], [11, 11]], dtype=float)
    assert knee(points) == 1
    # distance of (0.1, 0.3) to x + y = 1
    assert knee_distances(points)[1] == pytest.approx(0.6 / math.sqrt(2))
    assert knee_distances(points)[[0, 3]].tolist() == [0, 0]
    assert math.isnan(knee_distances(points)[4])


@settings(deadline=None)
@given(losses((1, 3), extended), st.floats(0.5, 8), st.integers(-3, 3))
def test_knee_does_not_depend_on_units(points: np.ndarray, scale: float, shift: int) -> None:
    np.testing.assert_allclose(
        knee_distances(points), knee_distances(points * scale + shift), atol=1e-9
    )


def test_knee_of_few_points() -> None:
    assert knee([[3.0, 4.0]]) == 0
    assert knee([[1.0, 1.0], [1.0, 1.0]]) == 0
    assert knee([[math.nan, 1.0], [2.0, 2.0]]) == 1
    with pytest.raises(ValueError, match="finite point"):
        knee([[math.nan, 1.0]])

"""What a training is compared by before its end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.stopping.outlook import outlook


def test_a_straight_fall_goes_on_for_as_long_again():
    losses = {50: 3.0, 60: 2.8, 70: 2.6}
    # 30 steps since the gates closed, 30 steps at 0.02 each
    assert outlook(losses, 40, 200) == pytest.approx(2.0)
    # the end comes before
    assert outlook(losses, 40, 80) == pytest.approx(2.4)


def test_the_pace_is_that_of_late():
    steps = range(10, 100, 10)
    losses = {step: 5.0 if step < 60 else 3.0 - 0.001 * step for step in steps}
    assert outlook(losses, 0, 100) == pytest.approx(3.0 - 0.001 * 100)


def test_one_that_rises_is_not_promised_more():
    assert outlook({50: 2.0, 60: 2.5}, 40, 100) == 2.5


def test_of_one_loss_no_pace_is_known():
    assert outlook({50: 2.0}, 40, 100) is None


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({50: 2.0, 60: math.inf}, math.inf),
        ({60: math.inf}, math.inf),
        ({50: math.inf, 60: 2.0}, 2.0),
        ({50: 3.0, 60: math.inf, 70: 2.0}, 2.0 - 0.05 * 30),
    ],
)
def test_losses_that_were_not_finite(losses: dict[int, float], expected: float):
    assert outlook(losses, 40, 200) == pytest.approx(expected)


def test_a_high_rate_that_pays_at_the_end_is_ahead_before_it_is():
    """Losses of two draws of the search behind docs/results/stopping.md at density 0.5."""
    high = {120: 3.163, 144: 2.979, 168: 2.878, 192: 2.744, 216: 2.653}
    low = {120: 2.831, 144: 2.815, 168: 2.793, 192: 2.788, 216: 2.777}
    for until in (144, 168):
        seen = [{s: v for s, v in each.items() if s <= until} for each in (high, low)]
        assert seen[0][until] > seen[1][until]
        ahead = [outlook(each, 96, 240) for each in seen]
        assert ahead[0] < ahead[1]  # type: ignore[operator]


@given(
    st.lists(st.floats(0.1, 10), min_size=2, max_size=12),
    st.integers(0, 50),
    st.integers(1, 20),
    st.integers(0, 400),
)
def test_it_is_never_worse_than_the_loss_and_never_beyond_the_steepest_fall(
    values: list[float], begin: int, every: int, rest: int
):
    losses = {begin + every * (n + 1): value for n, value in enumerate(values)}
    last = begin + every * len(values)
    found = outlook(losses, begin, last + rest)
    assert found is not None
    steepest = min(0.0, float(np.diff(values).min()) / every)
    ahead = min(rest, last - begin)
    assert found <= values[-1]
    assert found >= values[-1] + steepest * ahead - 1e-9

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank.schedule import linear_anneal, warmup_cosine


@pytest.mark.parametrize(
    ("step", "value"),
    [(-5, 1.0), (0, 1.0), (1, 0.925), (5, 0.625), (9, 0.325), (10, 0.25), (11, 0.25), (999, 0.25)],
)
def test_the_target_is_linear_then_constant(step, value):
    assert linear_anneal(step, 1.0, 0.25, 10) == pytest.approx(value)


@pytest.mark.parametrize("step", [0, 1, 100])
def test_without_annealing_the_target_is_final_at_once(step):
    assert linear_anneal(step, 1.0, 0.25, 0) == 0.25


@given(
    start=st.floats(0.01, 1),
    end=st.floats(0.01, 1),
    steps=st.integers(1, 50),
    at=st.integers(0, 60),
)
@settings(deadline=None)
def test_the_target_stays_between_its_ends_and_moves_one_way(start, end, steps, at):
    now, then = (linear_anneal(step, start, end, steps) for step in (at, at + 1))
    low, high = min(start, end) - 1e-12, max(start, end) + 1e-12
    assert low <= now <= high
    assert (then - now) * (end - start) >= 0
    assert linear_anneal(steps, start, end, steps) == pytest.approx(end, abs=1e-15)


def test_the_learning_rate_by_hand():
    # two steps of warm-up of 10, then a cosine from 1 to 0.2 over eight
    wanted = [0.5, 1.0] + [0.2 + 0.4 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
    actual = [warmup_cosine(step, 10, warmup_fraction=0.2, floor=0.2) for step in range(11)]
    assert actual == pytest.approx(wanted)
    assert warmup_cosine(10_000, 10, warmup_fraction=0.2, floor=0.2) == pytest.approx(0.2)


@given(steps=st.integers(1, 300), fraction=st.floats(0, 1), floor=st.floats(0, 1))
@settings(deadline=None)
def test_the_learning_rate_rises_once_then_falls_to_its_floor(steps, fraction, floor):
    factors = [warmup_cosine(step, steps, fraction, floor) for step in range(steps + 1)]
    warmup = max(1, math.ceil(fraction * steps))
    assert all(0 < factor <= 1 + 1e-12 for factor in factors[:warmup])
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup - 1] == 1
    later = factors[warmup:]
    assert all(a >= b - 1e-12 for a, b in pairwise(later))
    assert all(floor - 1e-12 <= factor <= 1 + 1e-12 for factor in later)


def test_no_step_has_a_learning_rate_of_zero():
    assert all(warmup_cosine(step, 100) > 0 for step in range(200))

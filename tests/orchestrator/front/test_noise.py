"""Intervals: closed forms, and how often they hold the true value."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median, stdev

import numpy as np
import pytest

from lowrank.timing import quartiles
from orchestrator.front.noise import (
    example_error,
    log_speedup,
    own_interval,
    pooled_noise,
    quality_interval,
    speedup_interval,
)
from tests.orchestrator.record_factory import make_speed


def test_noise_is_pooled_over_the_settings_that_were_repeated() -> None:
    noise = pooled_noise([[1.0, 3.0], [5.0], [10.0, 10.0, 13.0]])
    assert noise is not None
    # squares 2 and 6 over 1 + 2 degrees of freedom
    assert noise.degrees_of_freedom == 3
    assert noise.deviation == pytest.approx(math.sqrt(8 / 3))
    # a setting's residuals have the variance of its single runs
    first = noise.residuals[:2]
    assert first.std() == pytest.approx(stdev([1.0, 3.0]))
    # Student's quantile for three degrees of freedom
    assert noise.half_width(4) == pytest.approx(3.1824 * noise.deviation / 2, rel=1e-4)


def test_without_repeats_nothing_is_known() -> None:
    assert pooled_noise([[1.0], [2.0]]) is None
    interval = quality_interval([1.0], None)
    assert (interval.value, interval.low, interval.high) == (1.0, None, None)


def test_intervals_of_three_seeds_hold_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        true = rng.normal(0, 1, 5)
        runs = true[:, None] + rng.normal(0, 0.3, (5, 3))
        noise = pooled_noise(runs.tolist())
        for mean, values in zip(true, runs.tolist(), strict=True):
            interval = quality_interval(values, noise)
            assert interval.low is not None
            assert interval.high is not None
            held.append(interval.low <= mean <= interval.high)
    # 2000 intervals, of which those of one campaign share their variance
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_intervals_of_an_accuracy_hold_the_true_one() -> None:
    rng, n, seeds = np.random.default_rng(0), 300, 0.01
    held = []
    for _ in range(500):
        chosen = rng.normal(0, math.sqrt(0.9 * 0.1 / n))  # common to all runs
        runs = 0.9 + chosen + rng.normal(0, seeds, (6, 3))
        interval = quality_interval(
            runs[0].tolist(),
            pooled_noise(runs.tolist()),
            example_error("accuracy", runs[0].mean(), n),
        )
        held.append((interval.low or 0) <= 0.9 <= (interval.high or 0))
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


def test_errors_from_examples() -> None:
    assert example_error("accuracy", 0.9, 10_000) == pytest.approx(0.003, rel=0.01)
    assert (example_error("accuracy", 1.0, 100) or 0) > 0
    assert example_error("pearson", 0.0, 103) == pytest.approx(0.1)
    assert example_error("spearman", 0.8, 103) == pytest.approx(0.36 * math.sqrt(1.32) / 10)
    # of these a record does not hold what it takes
    assert example_error("bits_per_character", 2.0, 1000) is None
    assert example_error("f1", 0.9, 1000) is None
    assert example_error("accuracy", 0.9, None) is None


def test_a_correlation_spreads_over_samples_as_stated() -> None:
    rng, n, rho = np.random.default_rng(0), 200, 0.8
    first = rng.standard_normal((1000, n))
    second = rho * first + math.sqrt(1 - rho**2) * rng.standard_normal((1000, n))
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]
    assert np.std(found) == pytest.approx(example_error("pearson", rho, n), rel=0.1)


def test_one_size_is_exact_and_several_spread() -> None:
    assert own_interval([7]).low == own_interval([7]).high == 7
    interval = own_interval([10, 12])
    assert (interval.low, interval.high) == pytest.approx((11 - 12.706, 11 + 12.706), abs=1e-2)


def test_intervals_of_a_speed_up_hold_the_true_one() -> None:
    rng, true, held = np.random.default_rng(0), 1.5, []
    for _ in range(1000):
        pairs = (true * np.exp(rng.normal(0, 0.1, 25))).tolist()
        low, high = quartiles(pairs)
        row = replace(
            make_speed(1, median(pairs), 10.0), speedup_low=low, speedup_high=high, repeats=25
        )
        interval = speedup_interval(*log_speedup([row]))
        held.append((interval.low or 0) <= true <= (interval.high or 0))
    assert np.mean(held) == pytest.approx(0.94, abs=0.03)


def test_runs_that_differ_in_speed_spread_further_than_their_timing() -> None:
    slow, fast = make_speed(1, 1.0, 10.0), make_speed(1, 2.0, 10.0)
    log, error = log_speedup([slow, fast])
    assert math.exp(log) == pytest.approx(math.sqrt(2))
    assert error == pytest.approx(math.log(2) / 2)
    assert log_speedup([slow])[1] == pytest.approx(0.929 * math.log(1.04 / 0.97) / 3, rel=1e-3)

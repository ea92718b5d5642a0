"""Drawn fronts against enumeration and closed forms, and how often volumes hold the true one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from orchestrator.front import bootstrap
from orchestrator.front.bootstrap import Measured, draw_fronts, front_probability, resampled
from orchestrator.front.dominance import Losses, pareto_front
from orchestrator.front.hypervolume import hypervolume
from orchestrator.front.noise import SeedNoise, pooled_noise


def measured(losses: list, runs: list[list[float]], timing: float = 0.0) -> Measured:
    return Measured(
        losses=np.array(losses, dtype=float),
        num_runs=np.array([len(values) for values in runs]),
        noise=pooled_noise(runs),
        timing_error=np.full(len(losses), timing),
    )


def of_runs(runs: list[list[float]], sizes: list[float]) -> Measured:
    means = [float(np.mean(values)) for values in runs]
    return measured(list(zip(means, sizes, strict=True)), runs)


def enumerated(measure: Measured, noise: SeedNoise) -> Iterator[Losses]:
    """Every way to give each run one of the residuals, all equally likely."""
    total = int(measure.num_runs.sum())
    owner = np.repeat(np.arange(len(measure.num_runs)), measure.num_runs)
    for picked in product(noise.residuals.tolist(), repeat=total):
        losses = measure.losses.copy()
        sums = np.bincount(owner, weights=picked, minlength=len(losses))
        losses[:, 0] += sums / measure.num_runs
        yield losses


def test_drawn_probabilities_are_the_enumerated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # three settings of two, two and one runs; the first two are as large as each other
    case = of_runs([[1.0, 1.4], [1.3, 1.3], [0.9]], [2.0, 2.0, 3.0])
    assert case.noise is not None
    exact = front_probability(enumerated(case, case.noise))
    assert ((exact > 0) & (exact < 1)).any()
    # as if the spread itself were known
    monkeypatch.setattr(bootstrap, "_stretches", lambda noise, draws, seed: np.ones(draws))
    drawn = draw_fronts(case, [5, 5], [3], draws=20_000, seed=1).probability
    # four standard errors of a share over 20,000 draws
    assert drawn == pytest.approx(exact, abs=0.015)


def test_of_many_runs_the_probability_is_students() -> None:
    """Two settings of one size: who is better is a t-test."""
    rng, shift = np.random.default_rng(3), 0.25
    runs = [(values - values.mean()).tolist() for values in rng.normal(0, 1, (2, 12))]
    runs[1] = [value + shift for value in runs[1]]
    case = of_runs(runs, [1.0, 1.0])
    assert case.noise is not None
    error = case.noise.deviation * math.sqrt(2 / 12)
    better = stats.t.cdf(shift / error, case.noise.degrees_of_freedom)
    drawn = draw_fronts(case, [5, 5], [2], draws=20_000, seed=0).probability
    assert drawn == pytest.approx([better, 1 - better], abs=0.02)


def test_few_seeds_leave_more_open_than_many() -> None:
    few = of_runs([[0.0, 0.2], [0.3]], [1.0, 1.0])
    assert few.noise is not None
    many = replace(few, noise=replace(few.noise, degrees_of_freedom=1000))
    second = [draw_fronts(m, [5, 5], [2], draws=4000).probability[1] for m in (few, many)]
    assert second[0] > second[1] + 0.02


def test_without_noise_the_front_is_certain() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (3.0, 3.0)]
    drawn = draw_fronts(measured(points, [[0.0]] * 4), [4, 4], [1, 4], draws=10)
    assert drawn.probability.tolist() == [1, 1, 1, 0]
    volume = hypervolume(points, [4, 4]) / 16
    assert drawn.volumes == [pytest.approx((3 / 16,) * 3), pytest.approx((volume,) * 3)]


def test_timing_alone_decides_between_models_of_one_size_and_quality() -> None:
    points = [(0.0, 1.0, math.log(0.5)), (0.0, 1.0, math.log(0.55))]
    drawn = draw_fronts(measured(points, [[0.0]] * 2, 0.1), [1, 2, 1], [2], draws=8000)
    faster = stats.norm.cdf(math.log(1.1) / (0.1 * math.sqrt(2)))
    assert drawn.probability == pytest.approx([faster, 1 - faster], abs=0.025)


def test_a_missing_latency_is_never_on_the_front() -> None:
    points = [(0.0, 1.0, math.nan), (1.0, 2.0, -0.5)]
    drawn = draw_fronts(measured(points, [[0.0]] * 2, 0.1), [2, 3, 1], [1, 2], draws=20)
    assert drawn.probability.tolist() == [0, 1]
    assert drawn.volumes[0] == (0, 0, 0)
    assert drawn.volumes[1][0] > 0


def test_leaving_out_what_cannot_be_on_the_front_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((60, 3))
    runs = [[float(q), float(q + 0.01 * rng.standard_normal())] for q in losses[:, 0]]
    case = measured(losses.tolist(), runs, 0.02)
    kept = bootstrap.possible(case, 300, 0)
    assert len(kept) < len(losses)
    everything = front_probability(resampled(case, 300, 0))
    assert not everything[np.setdiff1d(np.arange(60), kept)].any()
    drawn = draw_fronts(case, [1, 1, 3], [60], draws=300, seed=0).probability
    assert drawn == pytest.approx(everything, abs=0.12)  # other random numbers


def test_the_same_seed_gives_the_same_result() -> None:
    case = of_runs([[1.0, 1.4], [1.3, 1.3], [0.9]], [2.0, 2.0, 3.0])
    first, again, other = (draw_fronts(case, [5, 5], [2, 3], 50, seed) for seed in (1, 1, 2))
    assert first.probability.tolist() == again.probability.tolist()
    assert first.volumes == again.volumes
    assert first.volumes != other.volumes


@pytest.mark.parametrize("deviation", [0.003, 0.015])
def test_intervals_hold_the_true_volume(deviation: float) -> None:
    """Also where the noise makes every measured front look better than it is."""
    rng, held, looked_better = np.random.default_rng(0), [], []
    for number in range(120):
        sizes = np.sort(rng.uniform(0.1, 0.6, 8))
        true = 0.08 * (1 - sizes) ** 2 + rng.normal(0, 0.005, 8)
        runs = true[:, None] + rng.normal(0, deviation, (8, 3))
        case = of_runs(runs.tolist(), sizes.tolist())
        value, low, high = draw_fronts(case, [0.1, 1], [8], draws=150, seed=number).volumes[0]
        volume = hypervolume(np.column_stack([true, sizes]), [0.1, 1]) / 0.1
        held.append(low <= volume <= high)
        looked_better.append(value > volume)
    assert np.mean(held) > 0.88  # 0.95 less three and a half standard errors
    assert np.mean(looked_better) > 0.5


def test_a_hundred_thousand_settings() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((100_000, 3))
    case = replace(
        measured(losses[:50].tolist(), [[0.0, 0.01]] * 50, 0.01),
        losses=losses,
        num_runs=np.ones(100_000, dtype=int),
        timing_error=np.full(100_000, 0.01),
    )
    drawn = draw_fronts(case, [1, 1, 3], [50_000, 100_000], draws=50)
    assert (drawn.probability > 0).sum() < 2000
    assert drawn.probability[pareto_front(losses)].mean() > 0.5

"""A front with its uncertainty, from records."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from orchestrator.front.assess import noisy_front
from orchestrator.front.dominance import pareto_front
from orchestrator.front.figures import NoisyFront
from orchestrator.front.objectives import loss_values
from orchestrator.records import ModelRecord
from tests.orchestrator.record_factory import make_dense, make_trial, make_trials

DENSE = make_dense()


def repeated(deviation: float, seeds: int = 3) -> list[ModelRecord]:
    """Every trial again under further seeds, whose quality differs by `deviation` at most."""
    return [
        replace(
            trial,
            key=f"{trial.key}-{seed}",
            seed=trial.seed + seed,
            method_name="flop-l0",
            validation={trial.metric.name: trial.quality + deviation * (seed - 1)},
            test={trial.metric.name: trial.test[trial.metric.name] + deviation * (seed - 1)},
        )
        for trial in make_trials()
        for seed in range(seeds)
    ]


def assess(trials: list[ModelRecord], **options: float) -> NoisyFront:
    front = noisy_front(trials, DENSE, draws=100, **options)
    assert front is not None
    return front


def test_without_repeats_the_probable_front_is_the_front() -> None:
    trials = [replace(trial, speed=[]) for trial in make_trials()]
    front = assess(trials)
    on_front = pareto_front(loss_values(trials, DENSE))
    probabilities = [front.probability_of(trial.key) for trial in trials]
    assert probabilities == on_front.astype(float).tolist()
    assert (front.objectives, front.batch) == (["quality_drop", "parameters"], None)
    assert (front.seed_noise, front.degrees_of_freedom) == (None, 0)
    assert all(each.quality.low is None and each.speedup is None for each in front.settings)
    assert front.probability_of("unknown") is None


def test_repeats_are_one_setting_and_give_its_intervals() -> None:
    trials = repeated(0.004)
    front = assess(trials)
    assert len(front.settings) == len(trials) // 3
    assert sorted(key for each in front.settings for key in each.keys) == sorted(
        trial.key for trial in trials
    )
    assert front.seed_noise == pytest.approx(0.004)
    assert front.degrees_of_freedom == 2 * len(front.settings)
    setting = front.settings[0]
    assert setting.quality.low is not None
    assert setting.quality.low < setting.quality.value < (setting.quality.high or 0)
    assert setting.parameters.low == setting.parameters.high
    assert setting.speedup is not None
    assert setting.test is not None


def test_more_noise_makes_fronts_less_certain() -> None:
    calm, noisy = (assess(repeated(deviation)) for deviation in (1e-5, 0.05))
    undecided = [
        sum(0 < each.probability < 1 for each in front.settings) for front in (calm, noisy)
    ]
    assert undecided[0] < undecided[1]
    widths = [
        (front.volumes[-1].volume.high or 0) - (front.volumes[-1].volume.low or 0)
        for front in (calm, noisy)
    ]
    assert widths[0] < widths[1]


def test_volume_grows_with_the_training_that_was_paid_for() -> None:
    trials = make_trials()
    volumes = assess(trials).volumes
    values = [point.volume.value for point in volumes]
    assert values == sorted(values)
    assert values[0] < values[-1]
    seconds = [DENSE.train_seconds + 83.0 * (index + 1) for index in range(len(trials))]
    assert [point.train_seconds for point in volumes] == pytest.approx(seconds)
    # one model: by how much it is better than the reference in each objective
    first = trials[0]
    drop = first.metric.drop(DENSE.quality, first.quality)
    size = first.size.num_parameters / DENSE.size.num_parameters
    expected = (1 - drop / 0.1) * (1 - size) * (1 - 1 / first.speedup(32))
    assert values[0] == pytest.approx(expected)


def test_trials_count_in_the_order_in_which_they_finished() -> None:
    trials = make_trials()[:2]
    late_first = [replace(trials[0], finished=20.0), replace(trials[1], finished=10.0)]
    assert assess(late_first).volumes[0] == assess(trials[::-1]).volumes[0]
    one_unknown = [late_first[0], trials[1]]
    assert assess(one_unknown).volumes[0] == assess(trials).volumes[0]


def test_a_score_gains_where_a_loss_falls() -> None:
    dense = make_dense("classification", "sst2")
    better = make_trial(0.5, 0.1, "classification", "sst2", validation={"accuracy": 0.92}, speed=[])
    worse = replace(better, key="worse", validation={"accuracy": 0.80}, config={"density": 0.4})
    front = noisy_front([worse, better], dense, {"splits": {"test": {"num_examples": 872}}})
    assert front is not None
    assert front.probability_of(better.key) == 1
    assert front.probability_of("worse") == 0
    test = front.settings[0].test
    assert test is not None
    binomial = math.sqrt(test.value * (1 - test.value) / 872)
    assert (test.high or 0) - test.value == pytest.approx(1.96 * binomial, rel=0.02)


def test_reference_decides_what_counts() -> None:
    trials = make_trials()
    volumes = [assess(trials, reference_drop=drop).volumes[-1].volume.value for drop in (0.001, 1)]
    assert volumes[0] < volumes[1]
    assert assess(trials, reference_drop=0.03).reference["quality_drop"] == 0.03
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="0 < reference_drop"):
            noisy_front(trials, DENSE, reference_drop=wrong)


def test_nothing_comparable_gives_nothing() -> None:
    assert noisy_front([], DENSE) is None
    unmeasured = make_trial(validation={"bits_per_character": math.nan})
    assert noisy_front([unmeasured], DENSE) is None


def test_a_setting_without_latency_is_off_a_front_with_one() -> None:
    trials = make_trials()
    small = make_trial(0.05, speed=[])
    assert assess([*trials, small]).probability_of(small.key) == 0

"""What of a record becomes an objective."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import pytest

from orchestrator.front.objectives import largest_batch, loss_values
from tests.orchestrator.record_factory import make_dense, make_speed, make_trial, make_trials


def test_columns_are_losses() -> None:
    dense, trials = make_dense(), make_trials()
    losses = loss_values(trials, dense)
    assert losses.shape == (len(trials), 3)
    assert losses[:, 0].tolist() == [t.quality - dense.quality for t in trials]
    assert losses[:, 1].tolist() == [t.size.num_parameters for t in trials]
    reference = median(t.speed[1].dense_ms for t in trials)
    assert losses[:, 2].tolist() == [reference / t.speed[1].speedup for t in trials]


def test_a_busy_machine_does_not_move_the_front() -> None:
    """The same model timed while everything took ten times as long is not a slower model."""
    dense, calm = make_dense(), make_trial(0.3)
    slower = [
        replace(s, dense_ms=10 * s.dense_ms, compressed_ms=10 * s.compressed_ms) for s in calm.speed
    ]
    latencies = loss_values([calm, replace(calm, speed=slower)], dense)[:, 2]
    assert latencies[0] == latencies[1]


def test_a_score_is_turned_round() -> None:
    dense = make_dense("classification", "sst2")
    better = replace(dense, validation={"accuracy": dense.quality + 0.01})
    assert loss_values([better], dense)[0, 0] == pytest.approx(-0.01)


def test_batch_picks_the_latency_and_missing_ones_are_nan() -> None:
    dense = make_dense()
    both = make_trial(0.3)
    small_only = make_trial(0.2, speed=[make_speed(1, 1.3, 6.0)])
    assert largest_batch([both, small_only]) == 32
    reference = median([both.speed[0].dense_ms, 6.0])
    assert loss_values([both, small_only], dense, batch=1)[1, 2] == reference / 1.3
    assert math.isnan(loss_values([both, small_only], dense)[1, 2])


def test_without_any_latency_two_columns_remain() -> None:
    dense = make_dense()
    trials = [make_trial(0.3, speed=[]), make_trial(0.2, speed=[])]
    assert loss_values(trials, dense).shape == (2, 2)
    assert loss_values([], dense).shape == (0, 2)
    assert largest_batch(trials) is None


def test_metrics_do_not_mix() -> None:
    with pytest.raises(ValueError, match="share a metric"):
        loss_values([make_trial()], make_dense("classification", "sst2"))

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
import torch
from torch import nn

from lowrank import LowRankError, timing
from lowrank.timing import (
    Pair,
    bootstrap_interval,
    check_repeats,
    fingerprint,
    forward_pair,
    num_threads,
    paired_ratio,
    quartiles,
    time_pair,
)


class Clock:
    """A clock that only the timed calls move."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", self.read)

    def read(self):
        self.log.append("read")
        return self.now

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds

        return run

    def wait(self):
        self.log.append("wait")

    def samples(self):
        """Which callable ran, and how often, between the two readings of each sample."""
        found, inside = [], None
        for event in self.log:
            if event == "read":
                if inside is not None:
                    found.append("".join(inside))
                inside = [] if inside is None else None
            elif inside is not None and event != "wait":
                inside.append(event)
        return found


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_the_two_take_turns_and_swap_who_goes_first(clock):
    time_pair(clock.call("a", 1.0), clock.call("b", 0.5), repeats=4)
    assert clock.samples()[2:] == ["a", "b", "b", "a", "a", "b", "b", "a"]  # two for calibration


def test_samples_are_paired_per_repeat(clock):
    pair = time_pair(clock.call("a", 3.0), clock.call("b", 2.0), repeats=5)
    assert pair.first_s == pytest.approx([3.0] * 5)
    assert pair.second_s == pytest.approx([2.0] * 5)
    assert pair.ratios == pytest.approx([1.5] * 5)
    assert pair.speedup == pytest.approx(1.5)


def test_short_calls_are_repeated_within_a_sample_and_reported_per_call(clock):
    pair = time_pair(clock.call("a", 0.005), clock.call("b", 0.001), repeats=2)
    assert clock.samples()[2:] == ["a" * 4, "b" * 20, "b" * 20, "a" * 4]
    assert pair.first_s == pytest.approx([0.005] * 2)
    assert pair.second_s == pytest.approx([0.001] * 2)


def test_calls_that_take_no_time_at_all_are_made_once_per_sample(clock):
    time_pair(clock.call("a", 0.0), clock.call("b", 0.0), repeats=2)
    assert clock.samples()[2:] == ["a", "b", "b", "a"]


def test_calls_are_warmed_up_before_they_are_timed(clock):
    time_pair(clock.call("a", 1.0), clock.call("b", 1.0), repeats=2)
    assert clock.log[:2] == ["a", "a"]


def test_the_device_is_waited_for_before_every_reading_of_the_clock(clock):
    time_pair(clock.call("a", 1.0), clock.call("b", 1.0), repeats=2, synchronize=clock.wait)
    readings = [number for number, event in enumerate(clock.log) if event == "read"]
    assert len(readings) == 2 * (2 + 4)
    assert all(clock.log[number - 1] == "wait" for number in readings)


def test_the_speedup_is_the_median_of_paired_ratios():
    # the machine slows down tenfold half-way; the ratio of medians would say 6.25
    pair = Pair(first_s=[2.0, 2.5, 30.0], second_s=[1.0, 1.0, 10.0])
    assert pair.ratios == [2.0, 2.5, 3.0]
    assert pair.speedup == 2.5
    assert pair.speedup_quartiles == (2.25, 2.75)
    assert Pair(first_s=[2.0, 3.0, 40.0], second_s=[1.0, 10.0, 10.0]).speedup == 2.0


def test_quartiles_are_inclusive():
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.75)


@pytest.mark.parametrize("repeats", [1, 0, -3])
def test_a_single_pair_is_refused(repeats):
    with pytest.raises(LowRankError, match=f"repeats >= 2 must hold, got {repeats}"):
        time_pair(lambda: None, lambda: None, repeats)


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, x, scale):
        self.seen.add((self.training, torch.is_inference_mode_enabled(), scale))
        return x * scale


def test_models_are_timed_in_evaluation_and_inference_mode():
    dense, small = Recorder().train(), Recorder().train()
    pair = forward_pair(dense, small, {"x": torch.ones(2), "scale": 3}, repeats=2)
    assert dense.seen == small.seen == {(False, True, 3)}
    assert len(pair.first_s) == len(pair.second_s) == 2
    assert not torch.is_inference_mode_enabled()


def test_threads_are_set_within_the_block_and_restored():
    before = torch.get_num_threads()
    with num_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="inside"), num_threads(before + 1):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_by_default_all_cores_of_the_process_are_used(monkeypatch):
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda _: {0, 3, 5})
    before = torch.get_num_threads()
    with num_threads(None) as count:
        assert count == torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_the_fingerprint_says_what_a_timing_depends_on():
    with num_threads(2):
        found = fingerprint(torch.device("cpu"), torch.bfloat16)
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == "cpu"
    assert found["dtype"] == "bfloat16"
    assert found["threads"] == 2
    assert found["torch"] == torch.__version__
    assert found.keys() >= {"cpu", "cores", "python", "system"}
    assert all(found.values())


def test_the_bootstrap_interval_is_that_of_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = [1.5, 1.9, 1.7, 1.8, 1.75, 1.4, 1.85, 1.72, 1.6]
    low, high = bootstrap_interval(values, seed=3)
    theirs = scipy_stats.bootstrap(
        (values,), statistics.median, vectorized=False, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert low < statistics.median(values) < high
    # medians take few values, so the ends are values of the sample or a step away
    assert low == pytest.approx(theirs.low, abs=0.06)
    assert high == pytest.approx(theirs.high, abs=0.06)


def test_the_bootstrap_interval_is_a_function_of_values_and_seed():
    values = [1.0, 1.2, 1.1, 1.3, 1.7, 1.5, 1.6]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval([2.0] * 7) == (2.0, 2.0)
    wide = bootstrap_interval(values, level=0.99)
    narrow = bootstrap_interval(values, level=0.5)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]
    assert wide != narrow
    for bad in ([], values):
        with pytest.raises(LowRankError, match="0 < level < 1"):
            bootstrap_interval(bad, level=1.0)


def test_a_ratio_is_faster_only_if_its_whole_interval_is():
    reference = [2.0, 2.2, 1.9, 2.1, 2.0, 2.3, 1.8]
    twice = paired_ratio(reference, [value / 2 for value in reference])
    assert (twice.median, twice.low, twice.high) == pytest.approx((2.0, 2.0, 2.0))
    assert twice.is_faster
    assert not paired_ratio(reference, reference).is_faster
    mixed = paired_ratio(reference, [1.9, 2.3, 1.8, 2.2, 1.9, 2.4, 1.9])
    assert mixed.low < 1 < mixed.high
    assert not mixed.is_faster


@pytest.mark.parametrize("repeats", [6, 1, 0])
def test_fewer_than_seven_repeats_are_refused(repeats):
    with pytest.raises(LowRankError, match=f"repeats >= 7 must hold, got {repeats}"):
        check_repeats(repeats)
    assert check_repeats(7) == 7

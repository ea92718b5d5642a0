from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lowrank import LowRankError, bench
from lowrank.bench import Pair, fingerprint, forward_pair, num_threads, quartiles, time_pair


class Clock:
    """A clock that only the timed calls move."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(bench.time, "perf_counter", self.read)

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
    monkeypatch.setattr(bench.os, "sched_getaffinity", lambda _: {0, 3, 5})
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

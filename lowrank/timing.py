"""Timing two models against each other: paired, interleaved, with spread.

A number is worth what is written next to it, so every result carries a fingerprint of hardware,
threads, dtype and versions. Medians of single runs drift with the machine's load; the ratio of
neighbouring runs does not, so the speed-up is the median of paired ratios.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import nn

from lowrank.errors import LowRankError

MIN_REPEATS = 7
"""Of a published figure: medians of fewer moved by more than 10 % from run to run."""
RESAMPLES = 2000
"""Of the bootstrap: 1000 or more for the ends of an interval (Efron and Tibshirani 1993, chapter
13)."""
MIN_SAMPLE_S = 0.02
"""A sample repeats the call until it lasts this long: below it the clock's and the scheduler's
jitter shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two callables timed in turns."""

    first_s: list[float]
    second_s: list[float]
    """Seconds per call, one entry per repeat."""

    @property
    def ratios(self) -> list[float]:
        """first / second: how many times faster the second is, per repeat."""
        return [a / b for a, b in zip(self.first_s, self.second_s, strict=True)]

    @property
    def speedup(self) -> float:
        return median(self.ratios)

    @property
    def speedup_quartiles(self) -> tuple[float, float]:
        return quartiles(self.ratios)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """How many times faster something is, from paired repeats."""

    median: float
    low: float
    high: float
    """Ends of the 95 % bootstrap interval of the median."""

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low > 1


def paired_ratio(reference_s: Sequence[float], other_s: Sequence[float], seed: int = 0) -> Ratio:
    """Median of reference / other over paired repeats, with its interval.

    Args:
        reference_s: Seconds of what is compared with, one per repeat.
        other_s: Seconds of what is compared, from the same rounds.
        seed: Of the bootstrap.
    """
    ratios = [a / b for a, b in zip(reference_s, other_s, strict=True)]
    low, high = bootstrap_interval(ratios, seed)
    return Ratio(median=median(ratios), low=low, high=high)


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the median (Efron 1979).

    Args:
        values: At least one.
        seed: The same values and seed give the same interval.
        level: Coverage, 0 < level < 1.
    """
    if not values or not 0 < level < 1:
        raise LowRankError(f"a value and 0 < level < 1 are needed, got {len(values)}, {level}")
    sample = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(sample), size=(RESAMPLES, len(sample)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.median(sample[draws], axis=1), [tail, 1 - tail])
    return float(low), float(high)


def check_repeats(repeats: int) -> int:
    """Return `repeats` unchanged, or raise LowRankError for too few to be published."""
    if repeats < MIN_REPEATS:
        raise LowRankError(f"repeats >= {MIN_REPEATS} must hold, got {repeats}")
    return repeats


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third, inclusive method."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def time_pair(
    first: Callable[[], object],
    second: Callable[[], object],
    repeats: int,
    synchronize: Callable[[], None] | None = None,
) -> Pair:
    """Time two callables in turns, swapping who goes first at every repeat.

    Args:
        first: For example the dense model's forward pass.
        second: For example the compressed one's.
        repeats: Pairs, >= 2.
        synchronize: Waits for the device; called before each reading of the clock.
    """
    first_s, second_s = time_rounds([first, second], repeats, synchronize)
    return Pair(first_s=first_s, second_s=second_s)


def time_rounds(
    calls: Sequence[Callable[[], object]],
    repeats: int,
    synchronize: Callable[[], None] | None = None,
) -> list[list[float]]:
    """Time several callables in rounds, turning the order round at every repeat.

    Args:
        calls: What to time.
        repeats: Rounds, >= 2.
        synchronize: Waits for the device; called before each reading of the clock.

    Returns:
        Seconds per call, [callables][repeats].
    """
    if repeats < 2:
        raise LowRankError(f"repeats >= 2 must hold, got {repeats}")
    wait = synchronize or (lambda: None)
    counts = [_calls_per_sample(call, wait) for call in calls]
    samples: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats):
        order = range(len(calls)) if repeat % 2 == 0 else reversed(range(len(calls)))
        for which in order:
            samples[which].append(_sample(calls[which], counts[which], wait))
    return samples


def forward_pair(
    dense: nn.Module, compressed: nn.Module, inputs: Mapping[str, Any], repeats: int
) -> Pair:
    """`time_pair` of two models' forward passes in inference mode, on the device of the inputs."""
    synchronize = synchronizer(next(iter(inputs.values())).device)
    dense.eval()
    compressed.eval()
    with torch.inference_mode():
        return time_pair(
            lambda: dense(**inputs), lambda: compressed(**inputs), repeats, synchronize
        )


def synchronizer(device: torch.device) -> Callable[[], None] | None:
    """What waits for a device's work; None where a call returns after it."""
    return torch.cuda.synchronize if device.type == "cuda" else None


@contextmanager
def num_threads(count: int | None) -> Iterator[int]:
    """Set torch's intra-op threads within the block; by default all cores of this process."""
    count = count or len(os.sched_getaffinity(0))
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def fingerprint(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What a timing depends on besides the model; JSON."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _calls_per_sample(call: Callable[[], object], wait: Callable[[], None]) -> int:
    for _ in range(2):
        call()
    elapsed = _sample(call, 1, wait)
    return max(1, round(MIN_SAMPLE_S / elapsed)) if elapsed > 0 else 1


def _sample(call: Callable[[], object], calls: int, wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - start) / calls


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

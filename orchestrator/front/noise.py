"""How far a measured figure lies from the true one: seeds, examples, timing.

Seeds: settings are repeated a few times each, so their spread is pooled over all that were (one
variance for a task), which makes intervals of three runs useful. It holds as far as settings do not
differ much in their spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from orchestrator.front.figures import Interval
from orchestrator.records import Speed

LEVEL = 0.95
"""Confidence of every interval: the custom of the field."""
_MEDIAN_ERROR = math.sqrt(math.pi / 2) / 1.349
"""Standard error of a normal sample's median, in interquartile ranges / sqrt(n)."""
_NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedNoise:
    """What a change of seed does to the quality."""

    deviation: float
    """Pooled standard deviation of one run, in the metric's unit."""
    degrees_of_freedom: int
    residuals: NDArray[np.float64]
    """Of every repeated run from its setting's mean, scaled up to the size that a single run's have
    (Davison and Hinkley 1997, section 6.2.3)."""

    def scaled(self, factor: float) -> SeedNoise:
        """In another unit; a negative factor turns a score into a loss."""
        return replace(
            self, deviation=abs(factor) * self.deviation, residuals=factor * self.residuals
        )

    def half_width(self, num_runs: int) -> float:
        """Of the interval of a mean (Student)."""
        quantile = stats.t.ppf((1 + LEVEL) / 2, self.degrees_of_freedom)
        return float(quantile * self.deviation / math.sqrt(num_runs))


def pooled_noise(runs: Sequence[Sequence[float]]) -> SeedNoise | None:
    """The noise of the seeds over all settings that were repeated.

    Args:
        runs: Per setting the finite qualities of its runs.

    Returns:
        None if no setting has two.
    """
    repeated = [np.asarray(values, dtype=np.float64) for values in runs if len(values) > 1]
    if not repeated:
        return None
    freedom = sum(len(values) - 1 for values in repeated)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in repeated)
    scaled = [
        (values - values.mean()) * math.sqrt(len(values) / (len(values) - 1)) for values in repeated
    ]
    return SeedNoise(
        deviation=math.sqrt(squares / freedom),
        degrees_of_freedom=freedom,
        residuals=np.concatenate(scaled),
    )


def example_error(metric: str, value: float, num_examples: int | None) -> float | None:
    """Standard error of a figure from the choice of the examples that it was read on.

    It is common to all models that are read on the same examples, so it says how far a figure may
    be off for other texts, and little about which of two models is better.

    Args:
        metric: `accuracy` (binomial), `pearson` (Fisher), `spearman` (Bonett and Wright 2000), or
            `pearson_spearman`, for which that of the ranks, the larger, is taken.
        value: The figure.
        num_examples: Of the split.

    Returns:
        None for any other metric: the record does not hold what it would take.
    """
    if num_examples is None or num_examples < 4 or not math.isfinite(value):
        return None
    if metric == "accuracy":
        # two successes and two failures are added, so that 100 % is not certain (Agresti, Coull)
        share = (value * num_examples + 2) / (num_examples + 4)
        return math.sqrt(share * (1 - share) / (num_examples + 4))
    if metric == "pearson":
        return (1 - value**2) / math.sqrt(num_examples - 3)
    if metric in ("spearman", "pearson_spearman"):
        return (1 - value**2) * math.sqrt((1 + value**2 / 2) / (num_examples - 3))
    return None


def quality_interval(
    values: Sequence[float], noise: SeedNoise | None, error: float | None = None
) -> Interval:
    """Of the mean of a setting's runs.

    Args:
        values: One per run.
        noise: Of the seeds.
        error: From the choice of examples; all runs share it.
    """
    mean = float(np.mean(values))
    parts = [noise.half_width(len(values))] if noise else []
    parts += [_NORMAL * error] if error is not None else []
    if not parts:
        return Interval(value=mean)
    half = math.hypot(*parts)
    return Interval(value=mean, low=mean - half, high=mean + half)


def own_interval(values: Sequence[float]) -> Interval:
    """Of a mean, from the spread of the values themselves; one value alone is exact."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(value=mean, low=mean, high=mean)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Interval(value=mean, low=mean - half, high=mean + half)


def log_speedup(rows: Sequence[Speed]) -> tuple[float, float]:
    """Logarithm of the speed-up of a setting, mean over its runs, and its standard error.

    Ratios are as often too large as too small by the same factor, so their logarithm is what is
    normal. Each run's error is that of the median of its pairs, from their quartiles; runs of
    different seeds are different models, so their spread counts where it is the larger.
    """
    logs = np.log([row.speedup for row in rows])
    errors = [
        _MEDIAN_ERROR * math.log(row.speedup_high / row.speedup_low) / math.sqrt(row.repeats)
        for row in rows
    ]
    timing = math.sqrt(sum(error**2 for error in errors)) / len(rows)
    between = float(np.std(logs, ddof=1)) / math.sqrt(len(rows)) if len(rows) > 1 else 0.0
    return float(np.mean(logs)), max(timing, between)


def speedup_interval(log: float, error: float) -> Interval:
    """Of a speed-up, from its logarithm."""
    return Interval(
        value=math.exp(log),
        low=math.exp(log - _NORMAL * error),
        high=math.exp(log + _NORMAL * error),
    )

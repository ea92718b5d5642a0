"""Values with a range, and the costs that a probe finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

DRIFT = 0.1
"""Least half-width of a range, of its value: medians of seven timings on one machine moved by so
much from hour to hour (`MeasureSpec.repeats`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A value, and between what it is expected."""

    value: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def around(cls, value: float, part: float = DRIFT) -> Range:
        return cls(value=value, low=value * (1 - part), high=value * (1 + part))

    def __add__(self, other: Range) -> Range:
        """Ends are added too: a machine that is slow is slow at everything."""
        return Range(
            value=self.value + other.value, low=self.low + other.low, high=self.high + other.high
        )

    def __mul__(self, factor: float) -> Range:
        return Range(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    @classmethod
    def between(cls, first: Range, second: Range, part: float) -> Range:
        """The straight line from `first` (0) to `second` (1), not beyond 0."""
        ends = ((first.value, second.value), (first.low, second.low), (first.high, second.high))
        value, low, high = (max(0.0, a + part * (b - a)) for a, b in ends)
        return cls(value=value, low=low, high=high)


def total(ranges: Iterable[Range]) -> Range:
    return sum(ranges, Range())


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCost:
    """What one model of a setting and density cost where it was probed, per worker."""

    setting: str
    density: float
    setup_s: Range
    """From a task at hand to the first step: loading, calibration, factors, a first pass."""
    step_s: dict[str, Range]
    """Mean of a step, by phase."""
    projection_s: Range
    """Between the gated steps and those after them, without the validations there."""
    export_s: Range
    """Without the evaluations."""
    validation_s: dict[str, Range]
    """Of the whole split, by `WHOLE` and `SMALL`."""
    test_s: Range
    """Of the whole split, of what is exported."""
    model_bytes: dict[str, int]
    """Of a model's state, by phase."""
    state_bytes: dict[str, int]
    """Of a training state to go on from, the largest of a phase."""
    weights_bytes: int
    """Of the exported weights."""
    export_bytes: int
    """Of the exported folder besides weights and record."""
    record_bytes: int
    """Of the record besides its curve."""
    point_bytes: float
    """Of a point of the curve in the record."""
    memory_bytes: int
    """Peak of a worker's resident memory."""
    device_bytes: int = 0
    """Peak of its memory on the GPU."""
    steps: dict[str, int] = field(default_factory=dict)
    """That were probed, by phase."""


def at_density(costs: list[JobCost], density: float) -> JobCost:
    """A cost at a density, on the straight line between the nearest two that were probed.

    Args:
        costs: Of one setting, at least one.
        density: Beyond those that were probed, the nearest one's cost.
    """
    ordered = sorted(costs, key=lambda cost: cost.density)
    below = [cost for cost in ordered if cost.density <= density]
    above = [cost for cost in ordered if cost.density >= density]
    if not below or not above:
        return (below or above)[-1 if below else 0]
    first, second = below[-1], above[0]
    if first.density == second.density:
        return first
    part = (density - first.density) / (second.density - first.density)
    return JobCost(**{name: _line(name, first, second, part, density) for name in _FIELDS})


_FIELDS = tuple(JobCost.__dataclass_fields__)


def _line(name: str, first: JobCost, second: JobCost, part: float, density: float) -> Any:
    a, b = getattr(first, name), getattr(second, name)
    if name == "density":
        return density
    if name in ("setting", "steps"):
        return a
    if isinstance(a, dict):
        return {key: _between(a[key], b[key], part) for key in a if key in b}
    return _between(a, b, part)


def _between(a: Any, b: Any, part: float) -> Any:
    if isinstance(a, Range):
        return Range.between(a, b, part)
    value = a + part * (b - a)
    return round(value) if isinstance(a, int) and isinstance(b, int) else value

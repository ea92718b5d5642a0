"""What is known of a task's front and how surely, as plain values with a JSON form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A figure and where its true value lies, with the confidence of `NoisyFront.level`."""

    value: float
    low: float | None = None
    """None if nothing is known of the noise; equal to `value` if there is none."""
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingFigures:
    """One setting of a method: a draw and its repeats under further seeds."""

    keys: list[str]
    """Of its runs."""
    quality: Interval
    """Mean on validation, in the metric's unit; the noise is that of the seeds."""
    test: Interval | None
    """Mean on test; the noise is that of the seeds and of the choice of examples."""
    parameters: Interval
    """Mean over the runs, of the whole model."""
    speedup: Interval | None
    """At the batch of the front; the noise is that of the timing."""
    probability: float
    """Part of the draws in which the setting was on the front."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumePoint:
    """The hypervolume once a certain training had been paid for."""

    train_seconds: float
    """Of all models that were finished by then, the dense reference among them."""
    num_settings: int
    volume: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyFront:
    """A task's front with its uncertainty."""

    objectives: list[str]
    """`quality_drop`, `parameters` and, if it was measured, `latency`: all relative to dense."""
    batch: int | None
    """Of the latency."""
    level: float
    draws: int
    seed: int
    seed_noise: float | None
    """Standard deviation of the quality over seeds, pooled over all repeated settings; None if
    none was repeated: then quality counts as exact."""
    degrees_of_freedom: int
    """Of `seed_noise`."""
    settings: list[SettingFigures]
    """Most probably on the front first."""
    reference: dict[str, float]
    """Per objective the worst value that counts for the hypervolume."""
    volumes: list[VolumePoint]
    """As parts of the box between the reference and a model as good as dense without size or
    latency; the last one is that of the whole front."""

    def probability_of(self, key: str) -> float | None:
        """Of the setting to which a run belongs."""
        return next((each.probability for each in self.settings if key in each.keys), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class AcrossTasks:
    """One setting, or one method tuned on each task by itself, over all tasks of a campaign."""

    name: str
    density: float
    drops: dict[str, float]
    """Relative loss of validation quality per task, mean over seeds."""
    worst_regret: float
    """The largest distance, over the tasks, to the least drop that any of the compared reaches."""
    worst_task: str
    average_rank: float
    """1 is the best; equal ones share the mean of their places."""

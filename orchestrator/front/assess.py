"""A task's front with its uncertainty, from the records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.campaign_records import TaskResult
from orchestrator.front.bootstrap import DRAWS, Measured, draw_fronts
from orchestrator.front.figures import Interval, NoisyFront, SettingFigures, VolumePoint
from orchestrator.front.noise import (
    LEVEL,
    SeedNoise,
    example_error,
    log_speedup,
    own_interval,
    pooled_noise,
    quality_interval,
    speedup_interval,
)
from orchestrator.front.objectives import largest_batch
from orchestrator.front.settings import runs_of_settings
from orchestrator.records import ModelRecord

REFERENCE_DROP = 0.1
"""Unless a rule says otherwise. A model a tenth worse than dense is hardly wanted at any size."""
MAX_POINTS = 30
"""Of the hypervolume over time: what a small plot can show."""


def noisy_front(
    trials: Sequence[ModelRecord],
    dense: ModelRecord,
    data: Mapping[str, Any] | None = None,
    reference_drop: float = REFERENCE_DROP,
    draws: int = DRAWS,
) -> NoisyFront | None:
    """Intervals on every axis, probabilities of being on the front, hypervolume over the training.

    The objectives are those of `objectives.loss_values`, relative to dense; a setting counts with
    the mean over its runs. One whose latency is missing is off a front that others have one on.

    Args:
        trials: Finished trials of one task.
        dense: Their reference.
        data: Of the task's result: number of examples per split.
        reference_drop: Relative loss of quality from which on a model is of no use, above 0.
        draws: Of the bootstrap.

    Returns:
        None if no trial has a figure that compares.
    """
    if not 0 < reference_drop < math.inf:
        raise ValueError(f"0 < reference_drop must hold, got {reference_drop}")
    ordered, paid = _in_order(trials, dense)
    groups = [
        runs
        for runs in runs_of_settings(ordered)
        if all(math.isfinite(dense.metric.drop(dense.quality, run.quality)) for run in runs)
    ]
    if not groups:
        return None
    batch = largest_batch([run for runs in groups for run in runs])
    noise = pooled_noise([[run.quality for run in runs] for runs in groups])
    measured = _measured(groups, dense, batch, noise)
    objectives = ["quality_drop", "parameters", "latency"][: measured.losses.shape[1]]
    reference = [reference_drop, 1.0, 1.0][: len(objectives)]
    prefixes = _prefixes(len(groups))
    drawn = draw_fronts(measured, reference, prefixes, draws, seed=dense.seed)
    figures = [
        _figures(runs, batch, noise, _num_examples(data), float(share))
        for runs, share in zip(groups, drawn.probability, strict=True)
    ]
    points = [
        VolumePoint(
            train_seconds=round(max(paid[runs[0].key] for runs in groups[:size]), 1),
            num_settings=size,
            volume=_interval(*volume),
        )
        for size, volume in zip(prefixes, drawn.volumes, strict=True)
    ]
    return NoisyFront(
        objectives=objectives,
        batch=batch,
        level=LEVEL,
        draws=draws,
        seed=dense.seed,
        seed_noise=noise.deviation if noise else None,
        degrees_of_freedom=noise.degrees_of_freedom if noise else 0,
        settings=sorted(figures, key=lambda each: -each.probability),
        reference=dict(zip(objectives, reference, strict=True)),
        volumes=points,
    )


def front_of(task: TaskResult) -> NoisyFront | None:
    """What a result says of its front; computed now for results of earlier versions."""
    return task.noisy_front or noisy_front(task.trials, task.dense, task.data)


def _in_order(
    trials: Sequence[ModelRecord], dense: ModelRecord
) -> tuple[list[ModelRecord], dict[str, float]]:
    """Trials as they finished, and per key the training that was paid for by then, in seconds.

    Records of earlier versions hold no time; with one of them the order of the plan counts.
    """
    ordered = list(trials)
    if all(trial.finished is not None for trial in trials):
        ordered.sort(key=lambda trial: trial.finished or 0.0)
    spent = np.cumsum([dense.train_seconds, *(trial.train_seconds for trial in ordered)])
    return ordered, {
        trial.key: float(seconds) for trial, seconds in zip(ordered, spent[1:], strict=True)
    }


def _prefixes(num_settings: int) -> list[int]:
    """At most `MAX_POINTS` numbers of settings, evenly spread, the last one all."""
    return sorted(
        {round(n) for n in np.linspace(1, num_settings, min(num_settings, MAX_POINTS)).tolist()}
    )


def _measured(
    groups: Sequence[Sequence[ModelRecord]],
    dense: ModelRecord,
    batch: int | None,
    noise: SeedNoise | None,
) -> Measured:
    drop = dense.metric.drop
    rows, errors = [], []
    for runs in groups:
        log, error = _log_speedup(runs, batch)
        quality = drop(dense.quality, float(np.mean([run.quality for run in runs])))
        size = float(np.mean([run.size.num_parameters for run in runs]))
        rows.append((quality, size / dense.size.num_parameters, -log))
        errors.append(error)
    losses, scale = np.array(rows), abs(dense.quality)
    if batch is None:
        losses = losses[:, :2]
    return Measured(
        losses=losses,
        num_runs=np.array([len(runs) for runs in groups]),
        noise=noise.scaled((-1 if dense.metric.higher_is_better else 1) / scale) if noise else None,
        timing_error=np.array(errors),
    )


def _log_speedup(runs: Sequence[ModelRecord], batch: int | None) -> tuple[float, float]:
    """NaN, without noise, where a run was not measured."""
    rows = [row for run in runs for row in run.speed if row.batch == batch]
    if len(rows) < len(runs) or not rows or any(row.speedup_low <= 0 for row in rows):
        return math.nan, 0.0
    return log_speedup(rows)


def _figures(
    runs: Sequence[ModelRecord],
    batch: int | None,
    noise: SeedNoise | None,
    num_examples: int | None,
    probability: float,
) -> SettingFigures:
    metric = runs[0].metric.name
    tests = [run.test[metric] for run in runs if math.isfinite(run.test.get(metric, math.nan))]
    log, error = _log_speedup(runs, batch)
    test = None
    if len(tests) == len(runs):
        spread = example_error(metric, float(np.mean(tests)), num_examples)
        test = quality_interval(tests, noise, spread)
    return SettingFigures(
        keys=[run.key for run in runs],
        quality=quality_interval([run.quality for run in runs], noise),
        test=test,
        parameters=own_interval([run.size.num_parameters for run in runs]),
        speedup=None if math.isnan(log) else speedup_interval(log, error),
        probability=probability,
    )


def _num_examples(data: Mapping[str, Any] | None) -> int | None:
    found = (data or {}).get("splits", {}).get("test", {}).get("num_examples")
    return found if isinstance(found, int) else None


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)

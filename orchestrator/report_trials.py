"""All trials of a task as rows of texts and sort values, and what became of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.campaign_records import FailedTrial, StoppedTrial, TaskResult
from orchestrator.front.figures import NoisyFront
from orchestrator.naming import Trial, TrialNames
from orchestrator.records import Densities, ModelRecord
from orchestrator.wording import (
    MISSING,
    count,
    milliseconds,
    number,
    percent,
    probability_in_words,
    ratio,
    short,
    stopped_early,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, and what it sorts by."""

    text: str
    order: float
    sub: str = ""
    """A second, smaller line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    key: str
    method: str
    name: str
    """Without the density, which has a column of its own."""
    order: float | str
    """What the name sorts by."""
    extra: str
    """Searched settings that the name leaves out."""
    status: str
    """`champion`, `candidate`, `front`, `dominated`, `stopped` or `failed`."""
    passes: bool
    """Whether every `require` rule was met."""
    cells: list[Cell]
    run_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialTable:
    columns: list[tuple[str, str]]
    """Heading and explanation of each of `Row.cells`."""
    rows: list[Row]
    methods: list[str]
    """Of the rows, where there are several."""


def chosen_trial(task: TaskResult) -> ModelRecord | None:
    """The trial that the choice names, if it names one."""
    return next((trial for trial in task.trials if trial.key == task.choice.key), None)


def outcome(task: TaskResult) -> str:
    """`champion` if the chosen model was promoted, `candidate` if not, `none` if none was."""
    if task.choice.key is None:
        return "none"
    return "champion" if task.promotion and task.promotion.promoted else "candidate"


def status_of(trial: ModelRecord, task: TaskResult) -> str:
    """What became of a finished trial."""
    if trial.key == task.choice.key:
        return outcome(task)
    return "front" if trial.key in task.choice.front else "dominated"


def measured_batches(task: TaskResult) -> list[int]:
    """The batches at which any trial was measured, ascending."""
    return sorted({row.batch for trial in task.trials for row in trial.speed})


def names_of(task: TaskResult) -> TrialNames:
    """What all its trials are called, with those that have no model."""
    return TrialNames.of([*task.trials, *task.stopped, *task.failed])


def stops_of(*tasks: TaskResult) -> str:
    """How many were stopped early, where, and what that saved."""
    return stopped_early((t.rung, t.saved_steps) for task in tasks for t in task.stopped)


def trial_table(task: TaskResult, front: NoisyFront | None = None) -> TrialTable:
    """Every trial of a task: the chosen one, the front, the rest by density, then those that were
    stopped early, then failures."""
    batches, names = measured_batches(task), names_of(task)
    place = {"champion": 0, "candidate": 0, "front": 1, "dominated": 2}
    finished = sorted(
        task.trials,
        key=lambda t: (place[status_of(t, task)], -t.config.get("density", 0), t.key),
    )
    rows = [
        Row(
            key=trial.key,
            method=trial.method_name,
            name=names.without_density(trial),
            order=_order(trial, names),
            extra=_extra(trial, names),
            status=status_of(trial, task),
            passes=trial.key in task.choice.passed,
            cells=_cells(trial, task, batches, front),
            run_id=trial.mlflow_run_id or "",
        )
        for trial in finished
    ]
    columns = _columns(task, batches)
    rows += [_row(trial, "stopped", names, len(columns)) for trial in task.stopped]
    rows += [_row(trial, "failed", names, len(columns)) for trial in task.failed]
    methods = list(dict.fromkeys(row.method for row in rows)) if names.several_methods else []
    return TrialTable(columns=columns, rows=rows, methods=methods)


def _extra(trial: ModelRecord, names: TrialNames) -> str:
    """Settings that the name leaves out, and whose they were before."""
    parts = [names.differences(trial), trial.warm_start and f"from {trial.warm_start}"]
    return ", ".join(part for part in parts if part)


def _columns(task: TaskResult, batches: list[int]) -> list[tuple[str, str]]:
    columns = [
        ("target", "density that was asked for, of the prunable matrices"),
        ("prunable", "realized density of the prunable matrices"),
        ("model", "kept fraction of all parameters"),
        ("bytes", "kept fraction of the weights file"),
        ("MACs", "kept fraction of the multiply-accumulates per token"),
        ("parameters", "parameters of the whole model"),
        ("validation", f"{task.dense.metric.name}, what selection looks at"),
        ("test", f"{task.dense.metric.name}, read once at the end"),
        ("drop", "relative loss of validation quality against dense"),
    ]
    for batch in batches:
        explanation = f"dense time / compressed time, and median latency, batch {batch}"
        columns.append((f"speed @ {batch}", explanation))
    columns.append(("P(front)", "probability that the setting is on the front, given the noise"))
    return columns


def _cells(
    trial: ModelRecord, task: TaskResult, batches: list[int], front: NoisyFront | None
) -> list[Cell]:
    kept = Densities.of(trial.size, task.dense.size)
    cells = [
        _cell(trial.config.get("density", math.nan), short),
        *(_cell(d, percent) for d in (kept.prunable, kept.parameters, kept.bytes, kept.macs)),
        _cell(trial.size.num_parameters, count),
        _cell(trial.quality, number),
        _cell(trial.test.get(trial.metric.name, math.nan), number),
        _cell(trial.metric.drop(task.dense.quality, trial.quality), percent),
    ]
    for batch in batches:
        latency = trial.latency_ms(batch)
        below = "" if math.isnan(latency) else milliseconds(latency)
        cells.append(replace(_cell(trial.speedup(batch), ratio), sub=below))
    probability = front.probability_of(trial.key) if front else None
    order = math.nan if probability is None else probability
    return [*cells, Cell(probability_in_words(probability), order)]


def _cell(value: float, write: Callable[[float], str]) -> Cell:
    return Cell(MISSING if math.isnan(value) else write(float(value)), float(value))


def _row(
    trial: FailedTrial | StoppedTrial, status: str, names: TrialNames, num_columns: int
) -> Row:
    """Of a trial without a model."""
    target = _cell(trial.config.get("density", math.nan), short)
    return Row(
        key=trial.key,
        method=trial.method_name,
        name=names.without_density(trial),
        order=_order(trial, names),
        extra=names.differences(trial),
        status=status,
        passes=False,
        cells=[target] + [Cell("", math.nan)] * (num_columns - 1),
        run_id="",
    )


def _order(trial: Trial, names: TrialNames) -> float | str:
    """Methods sort by name, the trials of one method by the setting that most campaigns search."""
    rate = trial.config.get("penalty_lr")
    return names.without_density(trial) if names.several_methods or rate is None else rate

"""How many bytes a campaign leaves, and how many it holds for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from orchestrator.layout import Layout
from orchestrator.plan.figures import JobCost, at_density
from orchestrator.plan.profile import TaskProfile
from orchestrator.plan.work import GATED, ModelWork, TaskWork
from orchestrator.report_svg import MAX_CURVES

DATABASE_BYTES = 950_000
"""Of MLflow's SQLite database before it holds a run. This and what follows was read off finished
campaigns of one and two tasks and 4 to 100 trials (MLflow 3.17.2, Ray 2.60.0)."""
RUN_BYTES, VALUE_BYTES = 37_000, 290
"""Of a model's run in the database (params, tags, last values, indices), and of each value of a
curve."""
VALUES_PER_POINT = {GATED: 7.5}
"""Metrics of a curve's point; those of other phases have loss, rate and seconds."""
VALUES_BESIDE = 3.1
SPEED_BYTES = 620
"""Of a record, for each batch size that was timed."""
RESULT_PART = 1.18
"""Of result.json, which holds all records, a step further in."""
PAGE_BYTES, TASK_BYTES, CURVE_BYTES, ROW_BYTES = 25_000, 75_000, 15_000, 4_500
"""Of report.html: in all, per task, per trial with curves of its own, per trial."""
PICTURE_BYTES = 62_000
"""Of a task's front as a picture."""
TUNE_BYTES = 40_000
"""That Ray Tune leaves of each trial."""
MODELS, LOGGED, DATABASE, DATA, REST = (
    "models",
    "models and records in MLflow",
    "MLflow's database",
    "prepared data",
    "report and the rest",
)
KEPT_PARTS = (MODELS, LOGGED, DATABASE, DATA, REST)
RESULT, REPORT = "result", "report"
"""Of a task; copied for each task."""
PARTS = (*KEPT_PARTS, RESULT, REPORT)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskBytes:
    """Of one task."""

    parts: dict[str, int]
    """That stay, by `PARTS`."""
    passing: int
    """That are there for a while: states of trainings, and models on their way."""


def task_bytes(
    work: TaskWork, profile: TaskProfile, data_bytes: int, side_by_side: int, timed: int = 1
) -> TaskBytes:
    """What a task writes, as long as everything is kept.

    Args:
        work: Counted.
        profile: With the sizes of what was exported.
        data_bytes: Of its prepared data.
        side_by_side: Trials that run at once.
        timed: Batch sizes at which speed is measured.
    """
    parts = dict.fromkeys(PARTS, 0) | {DATA: data_bytes}
    largest = 0
    for model in work.models:
        costs = profile.of(model) if model.method else [profile.dense]
        cost = at_density(costs, model.density)
        export, logged = cost.weights_bytes + cost.export_bytes, record_bytes(model, cost)
        # the logged model was packed before its speed was known
        record = logged + (timed * SPEED_BYTES if model.method else 0)
        parts[MODELS] += export + record
        parts[LOGGED] += export + logged + profile.logged_bytes + record
        parts[DATABASE] += RUN_BYTES + round(VALUE_BYTES * num_values(model))
        parts[RESULT] += round(RESULT_PART * record)
        parts[REST] += TUNE_BYTES
        largest = max(largest, passing_bytes(model, cost, work.snapshots))
    num_trials = len(work.trials)
    parts[REPORT] = TASK_BYTES + ROW_BYTES * num_trials + CURVE_BYTES * min(MAX_CURVES, num_trials)
    # in the folder and in MLflow
    parts[REST] += 2 * PICTURE_BYTES
    return TaskBytes(parts=parts, passing=side_by_side * largest)


def campaign_bytes(tasks: Sequence[TaskBytes], local_tracking: bool) -> dict[str, int]:
    """What all tasks write, and what they have in common, by `KEPT_PARTS`.

    Args:
        tasks: As many as there are.
        local_tracking: Whether MLflow's database lies in the storage.
    """
    sums = {part: sum(task.parts[part] for task in tasks) for part in PARTS}
    if local_tracking:
        sums[DATABASE] += DATABASE_BYTES
    # in the folder, and with the run of every task
    copies = 1 + len(tasks)
    sums[REST] += copies * (sums.pop(RESULT) + sums.pop(REPORT) + PAGE_BYTES)
    return sums


def num_values(work: ModelWork) -> float:
    """Metrics of a model's curve."""
    return sum(
        points * VALUES_PER_POINT.get(phase, VALUES_BESIDE) for phase, points in work.points.items()
    )


def record_bytes(work: ModelWork, cost: JobCost) -> int:
    """Of a model's record.json before its speed is measured."""
    return ceil(cost.record_bytes + work.num_points * cost.point_bytes)


def passing_bytes(work: ModelWork, cost: JobCost, snapshots: int) -> int:
    """Of a training on its way: its last states with one that is being written, or its model in
    Ray's folder and beside its home."""
    states = (snapshots + 1) * max(cost.state_bytes.values(), default=0) if work.steps else 0
    return max(states, 2 * (cost.weights_bytes + cost.export_bytes))


def found_bytes(layout: Layout, data: list[str], local_tracking: bool) -> dict[str, int]:
    """What a campaign has left on disk, by `KEPT_PARTS`.

    Args:
        layout: Its folders.
        data: Folders of its prepared data.
        local_tracking: Whether MLflow's store lies in the storage too.
    """
    models = size_of(layout.root / "models")
    found: dict[str, int] = {
        MODELS: models,
        DATA: sum(size_of(Path(folder)) for folder in data),
        REST: size_of(layout.root) - models,
    }
    if local_tracking:
        artifacts = layout.artifacts / layout.campaign
        reports = sum(
            path.stat().st_size
            for path in artifacts.rglob("*")
            if path.is_file() and path.name in ("report.html", "result.json")
        )
        pictures = sum(path.stat().st_size for path in artifacts.rglob("front-*.png"))
        found[LOGGED] = size_of(artifacts) - reports - pictures
        found[REST] += reports + pictures
        # one database for all campaigns of a storage: whose bytes are whose, nobody can tell
        if all(path.name == layout.campaign for path in layout.artifacts.glob("*")):
            found[DATABASE] = size_of_file(layout.storage / "mlflow.db")
    if not layout.report.exists():
        del found[REST]
    return found


def size_of_file(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 without one."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""How many bytes a campaign leaves, and how many it holds for a while."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from orchestrator.layout import Layout
from orchestrator.plan.figures import JobCost, at_density
from orchestrator.plan.probe import size_of
from orchestrator.plan.profile import TaskProfile
from orchestrator.plan.work import ModelWork, TaskWork
from orchestrator.records import RECORD
from orchestrator.snapshot import KEPT

DATABASE_BYTES = 950_000
"""Of MLflow's SQLite database before it holds a run, MLflow 3.17.2."""
RUN_BYTES, VALUE_BYTES = 24_000, 150
"""Of a model's run in it (params, tags, last values, indices), and of each value of a curve."""
VALUES_PER_POINT = 6
"""Metrics of a curve's point on average: loss, rate and seconds always, validation and the four of
the gates at some."""
REPORT_BYTES = 400_000
"""Of a task's part of report.html and of its pictures, in the folder and in MLflow."""
MODELS, LOGGED, DATABASE, DATA, REST = (
    "models",
    "models and records in MLflow",
    "MLflow's database",
    "prepared data",
    "report and the rest",
)
PARTS = (MODELS, LOGGED, DATABASE, DATA, REST)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskBytes:
    """Of one task."""

    parts: dict[str, int]
    """That stay."""
    passing: int
    """That are there for a while: states of trainings, and models on their way."""

    @property
    def kept(self) -> int:
        return sum(self.parts.values())


def task_bytes(
    work: TaskWork, profile: TaskProfile, data_bytes: int, side_by_side: int
) -> TaskBytes:
    """What a task writes, as long as everything is kept.

    Args:
        work: Counted.
        profile: With the sizes of what was exported.
        data_bytes: Of its prepared data.
        side_by_side: Trials that run at once.
    """
    models = logged = values = 0
    largest = 0
    for model in work.models:
        costs = profile.of(model) if model.method else [profile.dense]
        cost = at_density(costs, model.density)
        record = record_bytes(model, cost)
        models += cost.weights_bytes + cost.export_bytes + record
        # the model with its record, and the record of the run
        logged += cost.weights_bytes + cost.export_bytes + 2 * record + profile.logged_bytes
        values += RUN_BYTES + VALUES_PER_POINT * VALUE_BYTES * model.points
        largest = max(largest, passing_bytes(model, cost))
    # with all records once more in result.json, in the folder and in MLflow
    rest = REPORT_BYTES + 2 * sum(
        record_bytes(m, at_density(profile.of(m) if m.method else [profile.dense], m.density))
        for m in work.models
    )
    return TaskBytes(
        parts={MODELS: models, LOGGED: logged, DATABASE: values, DATA: data_bytes, REST: rest},
        passing=side_by_side * largest,
    )


def record_bytes(work: ModelWork, cost: JobCost) -> int:
    """Of a model's record.json."""
    return ceil(cost.record_bytes + work.points * cost.point_bytes)


def passing_bytes(work: ModelWork, cost: JobCost) -> int:
    """Of a training on its way: its last states with one that is being written, or its model in
    Ray's folder and beside its home."""
    states = (KEPT + 1) * max(cost.state_bytes.values(), default=0) if work.steps else 0
    return max(states, 2 * (cost.weights_bytes + cost.export_bytes))


def found_bytes(layout: Layout, data: list[str], local_tracking: bool) -> dict[str, int]:
    """What a campaign has left on disk, by the same parts.

    Args:
        layout: Its folders.
        data: Folders of its prepared data.
        local_tracking: Whether MLflow's store lies in the storage too.
    """
    models = size_of(layout.root / "models")
    found = {
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
        found[DATABASE] = size_of_file(layout.storage / "mlflow.db")
    return found


def size_of_file(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def is_record(path: Path) -> bool:
    return path.name == RECORD


def words(parts: dict[str, int]) -> dict[str, Any]:
    return {name: parts.get(name, 0) for name in PARTS}

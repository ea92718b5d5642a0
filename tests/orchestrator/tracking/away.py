"""One trial of a campaign whose tracking store comes and goes."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from orchestrator.job import Job
from orchestrator.launch import Launch
from orchestrator.records import CurvePoint, ModelRecord
from orchestrator.spec import Resources
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.tracking.journal import CurveSink, Journal
from orchestrator.tracking.patience import Patience
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import Family, make_job, method


def make_launch(tracking: Tracking, lm: Family, storage: Path) -> Launch:
    """One trial, and its run."""
    job = make_job(lm.task, lm.data, method(density=0.5), lm.dense.export)
    parent = tracking.task_run("away", "lm", "", {})
    return Launch(
        job=asdict(job),
        storage=str(storage),
        campaign="away",
        resources=Resources().model_dump(),
        tracking_uri=tracking.uri,
        run_id=tracking.model_run(job.key, parent, "t", {}, {}),
        metric=lm.dense.metric.name,
        dense_record=str(Path(lm.dense.export) / "record.json"),
        method_name="plain",
    )


def train(launch: Launch, at: dict[int, Any], die_after: int | None = None) -> ModelRecord | None:
    """Its training, in this process.

    Args:
        at: What to do before the points of a step are sent.
        die_after: The step at which it ends, as by SIGKILL.
    """
    home = launch.layout.model(launch.key)
    writer = RunWriter(launch.tracking_uri, launch.run_id, Patience(launch.tracking_uri))
    curve = CurveSink(
        Journal(launch.layout.journal(launch.key)),
        lambda points: writer.points(points, launch.metric),
    )

    def sink(points: list[CurvePoint]) -> None:
        for point in points:
            at.get(point.step, lambda: None)()
        curve(points)
        if die_after is not None and points[-1].step >= die_after:
            raise SystemExit

    def keep(progress: dict[str, Any], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            shutil.copytree(checkpoint, home)

    try:
        return run_job(Job(**launch.job), LocalWorkers(keep), sink)
    except SystemExit:
        return None


def history(launch: Launch, name: str) -> list[tuple[int, float]]:
    found = MlflowClient(launch.tracking_uri).get_metric_history(launch.run_id, name)
    return [(metric.step, metric.value) for metric in found]


def losses(record: ModelRecord) -> list[tuple[int, float | None]]:
    return [(point.step, point.train_loss) for point in record.curve]

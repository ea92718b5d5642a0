"""One model, dense reference or compressed, as a Ray Train run inside a Ray Tune trial."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import CampaignError, TrialError
from orchestrator.layout import Layout
from orchestrator.records import ModelRecord
from orchestrator.spec import Resources

logger = logging.getLogger(__name__)

MAX_FAILURES = 2
"""Restarts after a lost worker or node; a diverged training is not restarted, it would diverge
again."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where and with what a job runs; travels to the trial's process."""

    job: dict[str, Any]
    """Fields of `train_loop.Job`."""
    storage: str
    campaign: str
    resources: dict[str, Any]
    tracking_uri: str
    run_id: str
    metric: str
    """Name of the task's metric, for the keys of the curves."""
    dense_record: str | None = None
    """record.json of the dense reference; None for a dense job."""
    method_name: str = ""
    """Goes into the record; the job itself has no use for it."""

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.storage), self.campaign)


def worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs. Returns the reason if the job itself is at fault."""
    from lowrank.errors import LowRankError
    from orchestrator.job import Job
    from orchestrator.tracking import RunWriter
    from orchestrator.train_loop import run_job
    from orchestrator.workers import RayWorkers

    workers = RayWorkers()
    sink = None
    if workers.rank == 0:
        writer = RunWriter(config["tracking_uri"], config["run_id"])

        def sink(points: Any) -> None:
            writer.points(points, config["metric"])

    try:
        run_job(Job(**config["job"]), workers, sink)
    except (CampaignError, LowRankError) as error:
        # returned, not raised: Ray would take it for a fault of the machine and try again
        return {"failure": str(error)}
    return {"failure": None}


def run_launch(launch: Launch, callbacks: list[Any] | None = None) -> ModelRecord:
    """Train one model on its workers, bring its files home, and write its MLflow run.

    Raises:
        TrialError: Training failed; the run is ended as FAILED.
    """
    from orchestrator.tracking import RunWriter

    writer = RunWriter(launch.tracking_uri, launch.run_id)
    try:
        record = _fit(launch, callbacks or [])
        record = _log(launch, record, writer)
    except CampaignError as error:
        writer.end("FAILED", str(error))
        raise
    except Exception as error:
        writer.end("FAILED", f"{type(error).__name__}: {error}")
        raise
    # the last thing written: a FINISHED run with a record is a model that needs nothing more
    writer.end("FINISHED")
    return record


def tune_trial(config: dict[str, Any]) -> None:
    """The Tune trainable: one trial is one Ray Train run."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    launch = Launch(**config["launch"])
    try:
        record = run_launch(launch, [TuneReportCallback()])
    except TrialError as error:
        tune.report({"ended": 1, "failure": str(error)})
        return
    tune.report({"ended": 1, "failure": None, "quality": record.quality})


def _fit(launch: Launch, callbacks: list[Any]) -> ModelRecord:
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from orchestrator.snapshot import SnapshotStore

    resources = Resources.model_validate(launch.resources)
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    layout, key = launch.layout, launch.job["key"]
    # training goes on from its own snapshots; of Ray's state, what a killed attempt left is of no
    # use, and a file that Ray was writing when it died would stop the controller
    shutil.rmtree(layout.train / key, ignore_errors=True)
    trainer = TorchTrainer(
        worker,
        train_loop_config={
            "job": launch.job,
            "tracking_uri": launch.tracking_uri,
            "run_id": launch.run_id,
            "metric": launch.metric,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            name=key,
            storage_path=str(layout.train),
            # finite: Ray's default waits for ever for workers that cannot be placed
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=callbacks,
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrialError(_innermost(error), key) from error
    returned: Any = result.return_value or {}
    if returned.get("failure"):
        # asked for again it begins anew: from its last state it would fail in the same way
        SnapshotStore(layout.snapshots(key)).clear()
        raise TrialError(returned["failure"], key)
    if result.checkpoint is None:
        raise TrialError("the training ended without a model", key)
    home = layout.model(key)
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    result.checkpoint.to_directory(str(partial))
    shutil.rmtree(home, ignore_errors=True)
    partial.rename(home)
    shutil.rmtree(layout.train / key, ignore_errors=True)
    SnapshotStore(layout.snapshots(key)).clear()
    return ModelRecord.load(layout.record(key))


def _log(launch: Launch, record: ModelRecord, writer: Any) -> ModelRecord:
    from orchestrator.export_model import with_densities

    home = launch.layout.model(record.key)
    record = replace(
        record,
        export=str(home),
        mlflow_run_id=launch.run_id,
        method_name=launch.method_name,
    )
    if launch.dense_record is not None:
        dense = ModelRecord.load(Path(launch.dense_record))
        record = replace(record, densities=with_densities(record, dense))
    uri = writer.model(home, launch.job["task"]["kind"], {"size": asdict(record.size)})
    record = replace(record, model_uri=uri)
    writer.tags({"model_uri": uri, "export": str(home)})
    writer.record(record)
    record.save(home / "record.json")
    return record


def _innermost(error: BaseException) -> str:
    """The first cause, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"

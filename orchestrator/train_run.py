"""One training as a Ray Train run: what its workers do, whether there is another attempt after
machines were lost, and how the model's files come home."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import replace
from typing import Any

from orchestrator.bucket.kept import journal_at, states_at
from orchestrator.bucket.notes import collect_notes
from orchestrator.bucket.places import here, path_here
from orchestrator.controller_watch import attended
from orchestrator.elastic import callbacks as elastic_callbacks
from orchestrator.elastic import num_workers
from orchestrator.errors import (
    CampaignError,
    ClusterError,
    StoppedError,
    StorageError,
    TrialError,
)
from orchestrator.launch import Launch
from orchestrator.records import ModelRecord
from orchestrator.snapshot import SnapshotStore
from orchestrator.spec import Resources
from orchestrator.tracking import RunWriter
from orchestrator.tracking.journal import CurveSink, Journal
from orchestrator.tracking.patience import Patience
from orchestrator.watchdog import Watchdog, hung
from orchestrator.writable import outwait

logger = logging.getLogger(__name__)

MAX_IN_VAIN = 2
"""Further attempts after machines were lost or failed, without a new state in between: what is
wrong with the job itself ends soon, a training of days on machines that come and go does not. A
notice of preemption does not count."""


def worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs. Returns the reason if the job itself is at fault, and where
    and why it was stopped early if it was."""
    from ray.train import get_context

    from lowrank.errors import LowRankError

    rank = get_context().get_world_rank()
    note = path_here(config["hung"]) / f"worker{rank}.txt"
    outcome: dict[str, Any] = {"failure": None}
    try:
        with Watchdog(60 * config["hang_minutes"], note) as watchdog:
            # within its time: they read a file system that may hang
            from orchestrator.job import Job
            from orchestrator.train_loop import run_job, run_trunk
            from orchestrator.workers import RayWorkers

            journal = journal_at(config["journal"]) if rank == 0 else None
            sink = None if journal is None else _sink(config, journal)
            job = Job(**config["job"])
            job = replace(job, data=here(job.data), dense=here(job.dense) if job.dense else None)
            run = run_trunk if job.is_trunk else run_job
            workers = RayWorkers(watchdog, config["home"], config["stop_signal"])
            try:
                run(job, workers, sink)
            except StoppedError as stopped:
                outcome["stopped"] = stopped.facts
            if journal is not None:
                journal.settle()
    except StorageError:
        # no fault of the job: what it has saved stays, and another attempt goes on from there
        raise
    except (CampaignError, LowRankError) as error:
        # returned, not raised: Ray would take it for a fault of the machine and try again
        return {"failure": str(error)}
    return outcome


def _sink(config: dict[str, Any], journal: Journal) -> CurveSink:
    """Where the first worker's curve goes; a store that is away does not hold it up."""
    uri, metric = config["tracking_uri"], config["metric"]
    writer = RunWriter(uri, config["run_id"], Patience(uri))
    return CurveSink(journal, lambda points: writer.points(points, metric))


def train_on_workers(launch: Launch, callbacks: list[Any]) -> ModelRecord | None:
    """One Ray Train run: trains, and brings the model's files home; a trunk has none.

    Raises:
        TrialError: Training failed.
        StoppedError: It was stopped early; nothing of it is left but its curve.
    """
    import ray.train
    from ray.exceptions import RayActorError

    layout, key = launch.layout, launch.key
    resources = Resources.model_validate(launch.resources)
    states = states_at(layout.mirror.place(layout.snapshots(key)))
    layout.mirror.forget(layout.hung(key))
    if layout.mirror.is_bucket:
        layout.mirror.forget(layout.model(key))  # one that is damaged, or of whom nothing is known
    attempts = _Attempts(states)
    while True:
        try:
            with attended(resources.hang_minutes, layout.hung(key)) as signs:
                # training goes on from its own snapshots; of Ray's state, what a killed attempt
                # left is of no use, and a file that Ray was writing when it died would stop the
                # controller
                shutil.rmtree(layout.train / key, ignore_errors=True)
                result = _trainer(launch, [*callbacks, signs]).fit()
            return _brought_home(launch, result, states)
        except (ray.train.TrainingFailedError, RayActorError, OSError) as error:
            collect_notes(layout.mirror.place(layout.hung(key)))
            # one that waited for machines has waited enough
            waited = isinstance(getattr(error, "controller_failure", None), ClusterError)
            if waited or not (_outwaited(launch) or attempts.another()):
                raise TrialError(_reason(launch, error), key) from error
            logger.warning("goes on from its last state: %s", _innermost(error))


def _brought_home(launch: Launch, result: Any, states: SnapshotStore) -> ModelRecord | None:
    """The files of a training that ended, where models lie; its states are forgotten.

    Raises:
        TrialError: The job itself is at fault.
        OSError: They cannot be written.
    """
    layout, key = launch.layout, launch.key
    returned: Any = result.return_value or {}
    if returned.get("failure"):
        # asked for again it begins anew: from its last state it would fail in the same way
        states.clear()
        raise TrialError(returned["failure"], key)
    if returned.get("stopped"):
        shutil.rmtree(layout.train / key, ignore_errors=True)
        states.clear()
        raise StoppedError(**returned["stopped"])
    if launch.is_trunk:
        shutil.rmtree(layout.train / key, ignore_errors=True)
        states.clear()
        return None
    home = layout.model(key)
    if result.checkpoint is not None:
        partial = home.with_name(home.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        result.checkpoint.to_directory(str(partial))
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
    elif not layout.mirror.is_bucket or not layout.mirror.fetch_folder(home):
        raise TrialError("the training ended without a model", key)
    shutil.rmtree(layout.train / key, ignore_errors=True)
    states.clear()
    return ModelRecord.load(layout.record(key))


def _outwaited(launch: Launch) -> bool:
    """Whether the storage could not be written, and can again: what failed meanwhile had no
    chance.

    Raises:
        TrialError: It cannot after all the time for which machines are waited for.
    """
    minutes = Resources.model_validate(launch.resources).wait_minutes
    try:
        return outwait(launch.layout.root, minutes)
    except StorageError as error:
        raise TrialError(str(error), launch.key) from error


class _Attempts:
    """On machines that may be lost: what counts is not how many, but how many in vain."""

    def __init__(self, states: SnapshotStore) -> None:
        self._states, self._in_vain = states, 0
        self._last = self._step()

    def another(self) -> bool:
        """Whether there is to be another attempt after one that failed."""
        before, self._last = self._last, self._step()
        self._in_vain = self._in_vain + 1 if self._last <= before else 1
        return self._in_vain <= MAX_IN_VAIN

    def _step(self) -> int:
        """Of the last state, 0 without one."""
        return next(iter(self._states.steps()), 0)


def _trainer(launch: Launch, callbacks: list[Any]) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = Resources.model_validate(launch.resources)
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    layout, key = launch.layout, launch.key
    states = layout.mirror.place(layout.snapshots(key))
    return TorchTrainer(
        worker,
        train_loop_config={
            "job": launch.job,
            "tracking_uri": launch.tracking_uri,
            "run_id": launch.run_id,
            "metric": launch.metric,
            "journal": layout.mirror.place(layout.journal(key)),
            "hung": layout.mirror.place(layout.hung(key)),
            "home": layout.mirror.place(layout.model(key)) if layout.mirror.is_bucket else None,
            "hang_minutes": resources.hang_minutes,
            "stop_signal": launch.stop_signal,
        },
        # workers that wait for each other before the training begins are nobody's step
        torch_config=TorchConfig(timeout_s=math.ceil(60 * resources.hang_minutes)),
        scaling_config=ScalingConfig(
            num_workers=num_workers(resources),
            elastic_resize_monitor_interval_s=60 * resources.resize_minutes,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
            label_selector=resources.labels or None,
        ),
        run_config=RunConfig(
            name=key,
            storage_path=str(layout.train),
            # no restarts by Ray, which counts all that ever happened: see _Attempts. The other
            # limit is finite, for Ray's default waits for ever for workers that cannot be placed
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[*callbacks, *elastic_callbacks(resources, states)],
        ),
    )


def _reason(launch: Launch, error: BaseException) -> str:
    """Why there is no other attempt, with where workers stood if one of them hung."""
    stood = hung(launch.layout.hung(launch.key))
    if not stood:
        return _innermost(error)
    minutes = Resources.model_validate(launch.resources).hang_minutes
    return f"{_innermost(error)}; no step for {minutes:g} minutes: {stood}"


def _innermost(error: BaseException) -> str:
    """The first cause, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"

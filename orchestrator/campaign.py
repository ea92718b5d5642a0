"""A campaign from start to finish: states and order, no maths.

    for each task: data -> dense reference -> trials        (the cluster trains)
    then: speed, alone on the machine -> choice -> registry -> report

Every step looks first for what is already there, so the same command again finishes what is
missing. What is true is on disk and in MLflow; Ray's own state is needed only while trials run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime

from orchestrator import cluster, machines
from orchestrator.campaign_records import CampaignResult
from orchestrator.campaign_state import AnyTask, Site, TaskState
from orchestrator.changes import check_change
from orchestrator.conclusion import conclude, hardware
from orchestrator.data.prepare import PreparedData, describe, prepare_data
from orchestrator.disk import num_bytes
from orchestrator.earlier import Readings
from orchestrator.errors import CampaignError
from orchestrator.interrupts import heard, interruptible
from orchestrator.layout import Layout
from orchestrator.measuring_stage import MeasuringStage
from orchestrator.models import build_model, resolve_pretrained
from orchestrator.plan.make import keep_counts
from orchestrator.progress import Progress
from orchestrator.retention import Expected, check_budget, expected_bytes, of_all
from orchestrator.search import expected_rounds, expected_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec
from orchestrator.spec_search import ComparedMethod
from orchestrator.tasks import make_task
from orchestrator.tracking import Tracking, TrackingAway, default_tracking_uri
from orchestrator.train_run import train_on_workers
from orchestrator.trial import Train
from orchestrator.tune_run import train_all
from orchestrator.warming import read_earlier

logger = logging.getLogger(__name__)


class Interrupted(CampaignError):
    """Ctrl-C or SIGTERM; what was finished is kept."""

    exit_code = 130


class Campaign:
    """Drives one campaign.

    Args:
        spec: Resolved: absolute paths.
        say: Receives lines for people.
        measure_again: Time finished models once more, say because the machine was busy.
        changed: Go on under this name even if the spec no longer asks for models that are there.
        train: How a model is trained.
    """

    def __init__(
        self,
        spec: CampaignSpec,
        say: Callable[[str], None],
        measure_again: bool = False,
        changed: bool = False,
        train: Train = train_on_workers,
    ) -> None:
        self.spec, self.progress = spec, Progress(say=say)
        self.measure_again, self.changed, self.train = measure_again, changed, train
        self.layout = Layout.of(spec.storage, spec.name)
        self.tracking_uri = spec.tracking.uri or default_tracking_uri(spec.storage)
        self.registry_uri = spec.tracking.registry or self.tracking_uri
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()

    def run(self) -> CampaignResult:
        """All stages.

        Raises:
            Interrupted: On Ctrl-C or SIGTERM.
            CampaignError: With the reason.
        """
        cluster.set_environment()
        self.layout.create()
        with ExitStack() as stack:
            stack.enter_context(self.layout.locked(self.progress.line))
            stack.enter_context(interruptible())
            self.layout.mirror.pull(self.layout.root)
            self.tracking = self._open_tracking()
            try:
                # whatever happens, Ray's processes end before their runs are closed
                with ExitStack() as session, heard():
                    return self._stages(session)
            except KeyboardInterrupt:
                self._close_runs("KILLED", "interrupted")
                raise Interrupted(
                    "interrupted; what is finished is kept, and the same command goes on from there"
                ) from None
            except BaseException as error:
                self._close_runs("FAILED", str(error))
                raise

    def _stages(self, session: ExitStack) -> CampaignResult:
        states = self._prepare()
        self.progress.total_models = sum(
            1 + expected_trials(self.spec, task) for task in self.spec.tasks
        )
        self.progress.line("starting Ray")
        note, mirror = self.layout.ray_job, self.layout.mirror
        session.callback(mirror.push_file, note)  # which the session's end removes
        available = session.enter_context(cluster.ray_session(note))
        mirror.push_file(note)
        site = Site(
            spec=self.spec,
            layout=self.layout,
            tracking=self.tracking,
            progress=self.progress,
            available=available,
            train=self.train,
        )
        site.house.start(state.data.content_hash for state in states)
        for state in states:
            resources = self.spec.resources_of(state.task)
            site.available = machines.wait_to_fit(resources, state.task.name, self.progress.line)
            setting = {"data": state.data.info, "hardware": hardware(site.available)}
            self.tracking.writer(state.run_id).setting(setting)
        keep_counts(self.spec, {state.task.name: state.data for state in states}, site.available)
        train_all(site, states)
        for state in states:
            MeasuringStage(site, self.measure_again).run(state)
        result = conclude(
            site, states, self.registry_uri, self.started, time.monotonic() - self._clock
        )
        for state in states:
            self.tracking.writer(state.run_id).end("FINISHED")
        site.house.close({task.task: task.choice for task in result.tasks})
        return result

    def _open_tracking(self) -> Tracking:
        tracking = Tracking(
            self.tracking_uri,
            self.spec.name,
            self.layout.artifacts_of(self.tracking_uri),
            wait_s=60 * self.spec.tracking.wait_minutes,
            say=self.progress.line,
        )
        left = tracking.sweep("KILLED", "its driver ended without closing it")
        if left:
            self.progress.line(f"{left} runs of an earlier, killed driver marked as KILLED")
        return tracking

    def _close_runs(self, status: str, reason: str) -> None:
        """End what still runs in MLflow, unless it is away: then the next start ends it."""
        self.tracking.hurry()
        try:
            self.tracking.sweep(status, reason)
        except TrackingAway as error:
            self.progress.line(f"runs are left open until the next start: {error}")

    def _prepare(self) -> list[TaskState]:
        """Reads the data; nothing is changed before it is clear that this spec may go on."""
        self._expected: list[Expected] = []
        data = {task.name: self._read(task) for task in self.spec.tasks}
        check_budget(self.spec.retention.num_bytes, of_all(self._expected))
        hashes = {name: prepared.content_hash for name, prepared in data.items()}
        readings = self._earlier(data, hashes)
        say = self.progress.line
        check_change(self.layout, self.spec, hashes, self.changed, say, readings)
        text = dump_spec(self.spec, redact=True)
        self.layout.spec.write_text(text, encoding="utf-8")
        self.layout.mirror.push_file(self.layout.spec)
        if self.spec.search.warm_start is not None:
            readings.save()
            self.layout.mirror.push_file(self.layout.earlier)
        states = []
        for task in self.spec.tasks:
            tags = {"spec_hash": self.spec.digest(), "kind": task.kind}
            run_id = self.tracking.task_run(self.spec.name, task.name, text, tags)
            if self.spec.search.warm_start is not None:
                self.tracking.writer(run_id).artifact(self.layout.earlier)
            earlier = readings.of(self.spec, task, hashes[task.name])
            states.append(
                TaskState(task=task, data=data[task.name], run_id=run_id, earlier=earlier)
            )
        return states

    def _earlier(self, data: Mapping[str, PreparedData], hashes: Mapping[str, str]) -> Readings:
        """What `search.warm_start` has of other campaigns, now or from an earlier start."""
        readings = Readings(self.layout.earlier)
        if self.spec.search.warm_start is not None:
            metrics = {
                task.name: make_task(task, data[task.name], 0).metric.name
                for task in self.spec.tasks
            }
            uri, say = self.tracking_uri, self.progress.line
            read_earlier(self.spec, hashes, metrics, readings, uri, say)
        return readings

    def _read(self, task: AnyTask) -> PreparedData:
        self.progress.line(f"{task.name}: reading data")
        pretrained = resolve_pretrained(task.model)
        data = prepare_data(task, self.layout.cache, pretrained, self.layout.mirror)
        self.progress.line(f"{task.name}: {describe(data)}")
        self._check_model(task, data)
        return data

    def _check_model(self, task: AnyTask, data: PreparedData) -> None:
        """A model that cannot be built, patterns that match nothing, or layers that one of the
        methods cannot prune, stop the campaign here."""
        from lowrank.errors import LowRankError
        from lowrank.prunable import prunable_shape
        from lowrank.surgery import find_layers
        from orchestrator.methods import check_layers

        model = build_model(task, data, self.spec.seed)
        method = self.spec.method_of(task)
        try:
            match = find_layers(model, method.include, method.exclude, method.embeddings)
            for compared in self.spec.search.methods.values() or [ComparedMethod()]:
                check_layers(self.spec.method_of(task, compared.changes), model, match.layers)
        except LowRankError as error:
            raise CampaignError(f"method of task {task.name}: {error}") from error
        total = sum(p.numel() for p in model.parameters())
        prunable = sum(prunable_shape(layer).num_dense for layer in match.layers.values())
        self.progress.line(
            f"{task.name}: {type(model).__name__}, {total:,} parameters, "
            f"{prunable:,} of them in {len(match.layers)} prunable matrices"
        )
        # what is on a server is not on this disk
        here = self.tracking_uri.startswith("sqlite:")
        self._expected.append(
            expected_bytes(
                parameters=total,
                prunable=prunable,
                densities=[
                    plan.method.density
                    for each in expected_rounds(self.spec, task)
                    for plan in each
                ],
                concurrent=self.spec.resources_of(task).concurrent_trials,
                snapshots=self.spec.retention.snapshots,
                data_bytes=num_bytes(data.folder),
                artifacts_here=here,
            )
        )

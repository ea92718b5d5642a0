"""A campaign from start to finish: states and order, no maths.

    for each task: data -> dense reference -> trials        (the cluster trains)
    then: speed, alone on the machine -> choice -> registry -> report

Every step looks first for what is already there, so the same command again finishes what is
missing. What is true is on disk and in MLflow; Ray's own state is needed only while trials run.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import cluster
from orchestrator.data.prepare import PreparedData, describe, prepare_data
from orchestrator.errors import CampaignError, TrialError
from orchestrator.layout import Layout
from orchestrator.models import build_model, resolve_pretrained
from orchestrator.progress import Progress, tune_callback
from orchestrator.records import CampaignResult, FailedTrial, ModelRecord, TaskResult
from orchestrator.search import TrialPlan, dense_key, plan_trials
from orchestrator.spec import CampaignSpec, Classification, LanguageModelling
from orchestrator.spec_io import dump_spec
from orchestrator.tracking import RunWriter, Tracking, default_tracking_uri
from orchestrator.trial import Launch, tune_trial

logger = logging.getLogger(__name__)

AnyTask = LanguageModelling | Classification


class Interrupted(CampaignError):
    """Ctrl-C or SIGTERM; what was finished is kept."""

    exit_code = 130


@dataclass(kw_only=True)
class TaskState:
    """What the campaign knows of one task while it runs."""

    task: AnyTask
    data: PreparedData
    plans: list[TrialPlan]
    run_id: str
    dense: ModelRecord | None = None
    trials: list[ModelRecord] = field(default_factory=list)
    failed: list[FailedTrial] = field(default_factory=list)


class Campaign:
    """Drives one campaign.

    Args:
        spec: Resolved: absolute paths.
        say: Receives lines for people.
        measure_again: Time finished models once more, say because the machine was busy.
    """

    def __init__(
        self, spec: CampaignSpec, say: Callable[[str], None], measure_again: bool = False
    ) -> None:
        self.spec, self.progress = spec, Progress(say=say)
        self.measure_again = measure_again
        self.layout = Layout(Path(spec.storage), spec.name)
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
            stack.enter_context(self.layout.locked())
            stack.enter_context(_terminate_as_interrupt())
            self.layout.spec.write_text(dump_spec(self.spec, redact=True), encoding="utf-8")
            self.tracking = self._open_tracking()
            try:
                return self._stages(stack)
            except KeyboardInterrupt:
                self.tracking.sweep("KILLED", "interrupted")
                raise Interrupted(
                    "interrupted; what is finished is kept, and the same command goes on from there"
                ) from None
            except BaseException as error:
                self.tracking.sweep("FAILED", str(error))
                raise

    def _stages(self, stack: ExitStack) -> CampaignResult:
        states = [self._prepare(task) for task in self.spec.tasks]
        self.progress.total_models = sum(1 + len(state.plans) for state in states)
        self.progress.line("starting Ray")
        self.available = stack.enter_context(cluster.ray_session())
        for state in states:
            cluster.check_fits(self.spec.resources_of(state.task), self.available, state.task.name)
        for state in states:
            self._train(state)
        for state in states:
            self._measure(state)
        result = self._conclude(states)
        for state in states:
            RunWriter(self.tracking_uri, state.run_id).end("FINISHED")
        return result

    # ------------------------------------------------------------------ before training

    def _open_tracking(self) -> Tracking:
        tracking = Tracking(self.tracking_uri, self.spec.name, self.layout.artifacts)
        left = tracking.sweep("KILLED", "its driver ended without closing it")
        if left:
            self.progress.line(f"{left} runs of an earlier, killed driver marked as KILLED")
        return tracking

    def _prepare(self, task: AnyTask) -> TaskState:
        self.progress.line(f"{task.name}: reading data")
        data = prepare_data(task, self.layout.cache, resolve_pretrained(task.model))
        self.progress.line(f"{task.name}: {describe(data)}")
        self._check_model(task, data)
        run_id = self.tracking.task_run(
            self.spec.name,
            task.name,
            dump_spec(self.spec, redact=True),
            {"spec_hash": self.spec.digest(), "kind": task.kind},
        )
        return TaskState(
            task=task,
            data=data,
            plans=plan_trials(self.spec, task, data.content_hash),
            run_id=run_id,
        )

    def _check_model(self, task: AnyTask, data: PreparedData) -> None:
        """A model that cannot be built, or patterns that match nothing, stop the campaign here."""
        from lowrank.errors import LowRankError
        from lowrank.linear import layer_shape
        from lowrank.surgery import find_layers

        model = build_model(task, data, self.spec.seed)
        method = self.spec.method_of(task)
        try:
            match = find_layers(model, method.include, method.exclude)
        except LowRankError as error:
            raise CampaignError(f"method of task {task.name}: {error}") from error
        total = sum(p.numel() for p in model.parameters())
        prunable = sum(layer_shape(layer).num_dense for layer in match.layers.values())
        self.progress.line(
            f"{task.name}: {type(model).__name__}, {total:,} parameters, "
            f"{prunable:,} of them in {len(match.layers)} prunable matrices"
        )

    # ------------------------------------------------------------------ training

    def _train(self, state: TaskState) -> None:
        task = state.task
        key = dense_key(self.spec, task, state.data.content_hash)
        dense_name = f"{task.name} dense"
        state.dense = self._existing(key)
        if state.dense is None:
            launch = self._launch(state, key, "dense", self.spec.method_of(task).model_dump(), {})
            self._run_trials(state, {dense_name: launch}, 1)
            state.dense = self._existing(key)
        else:
            self.progress.done(dense_name, "already finished", reused=True)
        if state.dense is None:
            reason = state.failed[-1].reason if state.failed else "no record was left"
            raise TrialError(f"the dense reference of task {task.name} failed: {reason}", key)
        launches: dict[str, Launch] = {}
        for plan in state.plans:
            name = f"{task.name} {plan.name}"
            if self._existing(plan.key) is not None:
                self.progress.done(name, "already finished", reused=True)
            else:
                launches[name] = self._launch(
                    state, plan.key, plan.name, plan.method.model_dump(), plan.searched
                )
        concurrent = cluster.concurrent_trials(self.spec.resources_of(task), self.available)
        if launches:
            self._run_trials(state, launches, concurrent)
        records = [self._existing(plan.key) for plan in state.plans]
        state.trials = [record for record in records if record is not None]

    def _existing(self, key: str) -> ModelRecord | None:
        """A finished model with this key: both its record and its FINISHED run."""
        path = self.layout.record(key)
        if path.exists() and self.tracking.finished(key):
            return ModelRecord.load(path)
        return None

    def _launch(
        self, state: TaskState, key: str, name: str, method: dict[str, Any], params: dict[str, Any]
    ) -> Launch:
        from orchestrator.tasks import make_task

        task, dense = state.task, state.dense
        run_id = self.tracking.model_run(
            key,
            state.run_id,
            f"{task.name} {name}",
            {
                "task": task.name,
                "seed": self.spec.seed,
                "workers": self.spec.resources_of(task).workers,
                "data_hash": state.data.content_hash,
                "dense": task.dense.model_dump(),
            }
            # a dense reference outlives a change of method, and MLflow refuses changed parameters
            | ({"method": method | params} if dense else {}),
            {
                "kind": "trial" if dense else "dense",
                "spec_hash": self.spec.digest(),
                **_versions(),
            },
        )
        job = {
            "key": key,
            "task": task.model_dump(mode="json"),
            "method": method,
            "data": str(state.data.folder),
            "seed": self.spec.seed,
            "dense": dense.export if dense else None,
        }
        return Launch(
            job=job,
            storage=self.spec.storage,
            campaign=self.spec.name,
            resources=self.spec.resources_of(task).model_dump(),
            tracking_uri=self.tracking_uri,
            run_id=run_id,
            metric=make_task(task, state.data, 0).metric.name,
            dense_record=str(self.layout.record(dense.key)) if dense else None,
        )

    def _run_trials(self, state: TaskState, launches: dict[str, Launch], concurrent: int) -> None:
        """Tune runs one trial per launch; failures are kept with their reason."""
        from ray import tune

        names = {launch.job["key"]: name for name, launch in launches.items()}
        tuner = tune.Tuner(
            tune.with_resources(tune_trial, {cluster.DRIVER: 1}),
            param_space={"launch": tune.grid_search([asdict(v) for v in launches.values()])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                trial_dirname_creator=lambda trial: trial.config["launch"]["job"]["key"],
            ),
            run_config=tune.RunConfig(
                name=f"{state.task.name}-{int(time.time())}",
                storage_path=str(self.layout.tune),
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[tune_callback(self.progress, names)],
                verbose=0,
            ),
        )
        for result in tuner.fit():
            launch = (result.config or {})["launch"]
            failure = (result.metrics or {}).get("failure")
            if result.error is not None:
                failure = f"{type(result.error).__name__}: {str(result.error).splitlines()[-1]}"
                RunWriter(self.tracking_uri, launch["run_id"]).end("FAILED", failure)
            if failure:
                state.failed.append(
                    FailedTrial(
                        key=launch["job"]["key"],
                        task=state.task.name,
                        config=launch["job"]["method"],
                        reason=failure,
                    )
                )

    # ------------------------------------------------------------------ after training

    def _measure(self, state: TaskState) -> None:
        """Timings of models that have none yet (or of all); nothing else runs meanwhile."""
        from orchestrator.measure import measure_speed

        assert state.dense is not None
        for index, record in enumerate(state.trials):
            if record.speed and not self.measure_again:
                continue
            self.progress.line(
                f"{state.task.name}: measuring speed, {index + 1}/{len(state.trials)}"
            )
            rows = cluster.run_alone(
                measure_speed,
                state.dense.export,
                record.export,
                state.task,
                str(state.data.folder),
                self.spec.measure,
            )
            record = replace(record, speed=rows)
            assert record.mlflow_run_id is not None
            RunWriter(self.tracking_uri, record.mlflow_run_id).speed(rows)
            record.save(self.layout.record(record.key))
            state.trials[index] = record

    def _conclude(self, states: list[TaskState]) -> CampaignResult:
        from orchestrator.report import write_report
        from orchestrator.selection import choose

        tasks = []
        for state in states:
            assert state.dense is not None
            choice = choose(state.trials, state.dense, self.spec.select)
            self.progress.line(f"{state.task.name}: {choice.sentence}")
            result = TaskResult(
                task=state.task.name,
                kind=state.task.kind,
                dense=state.dense,
                trials=state.trials,
                failed=state.failed,
                choice=choice,
                data=state.data.info,
            )
            tasks.append(self._promote(state, result))
        campaign = CampaignResult(
            name=self.spec.name,
            spec_hash=self.spec.digest(),
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 1),
            tasks=tasks,
            hardware=_hardware(self.available),
        )
        campaign.save(self.layout.result)
        write_report(campaign, self.layout.report)
        self._publish(states, campaign)
        return campaign

    def _promote(self, state: TaskState, result: TaskResult) -> TaskResult:
        from orchestrator.promotion import register_and_promote
        from orchestrator.registry import Registry

        chosen = next((r for r in state.trials if r.key == result.choice.key), None)
        if chosen is None:
            return result
        promotion = register_and_promote(
            self.spec,
            state.task,
            chosen,
            result.dense,
            str(state.data.folder),
            result.choice.sentence,
            Registry(self.registry_uri, self.tracking_uri),
            cluster.run_alone,
        )
        self.progress.line(f"{state.task.name}: {promotion.sentence}")
        return replace(result, promotion=promotion)

    def _publish(self, states: list[TaskState], campaign: CampaignResult) -> None:
        """The report and each task's front, choice and dense figures, on its parent run."""
        from orchestrator.report import write_front_figure

        for state, result in zip(states, campaign.tasks, strict=True):
            writer = RunWriter(self.tracking_uri, state.run_id)
            figure = self.layout.root / f"front-{result.task}.png"
            write_front_figure(result, figure)
            for path in (figure, self.layout.report, self.layout.result):
                writer.artifact(path)
            metric = result.dense.metric.name
            writer.metrics({f"dense/test_{metric}": result.dense.test[metric]})
            writer.metrics({f"dense/validation_{metric}": result.dense.quality})
            tags = {"choice": result.choice.sentence}
            if result.promotion is not None:
                tags["promotion"] = result.promotion.sentence
            writer.tags(tags)
            on_front = set(result.choice.front)
            for record in result.trials:
                if record.mlflow_run_id is not None:
                    RunWriter(self.tracking_uri, record.mlflow_run_id).tags(
                        {
                            "pareto_front": str(record.key in on_front).lower(),
                            "chosen": str(record.key == result.choice.key).lower(),
                        }
                    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("lowrank-orchestrator", "torch", "transformers", "ray", "mlflow")
    return {f"version.{name}": version(name) for name in names}


def _hardware(available: dict[str, Any]) -> dict[str, Any]:
    import torch

    from lowrank.bench import fingerprint

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return fingerprint(device, torch.float32) | {
        "cluster_cpus": available.get("CPU", 0),
        "cluster_gpus": available.get("GPU", 0),
    }


class _terminate_as_interrupt:
    """SIGTERM ends a campaign the way Ctrl-C does; only the main thread may ask for signals."""

    def __enter__(self) -> None:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._raise)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _raise(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

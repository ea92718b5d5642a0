"""A comparison as its records in MLflow tell it: nothing else is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.campaign_records import Choice, FailedTrial, StoppedTrial, TaskResult
from orchestrator.campaign_state import AnyTask
from orchestrator.draws import Draws
from orchestrator.earlier import EarlierTrial
from orchestrator.errors import CampaignError
from orchestrator.method_search import TrialPlan
from orchestrator.records import ModelRecord
from orchestrator.report_methods import Runs, compared_runs
from orchestrator.search import expected_trials, plan_trials
from orchestrator.spec import CampaignSpec, MethodSpec
from orchestrator.spec_stopping import training_steps
from orchestrator.tracking.reading import LoggedRun, RunReader
from orchestrator.tracking.writer import STOPPED_RUNG, STOPPED_STEP, STOPPED_TAG, flat
from orchestrator.trial_keys import dense_key


class NotStartedError(CampaignError):
    """A task has no finished dense reference, so there is nothing to compare."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What is known of one task of a campaign, finished or not."""

    spec: CampaignSpec
    task: AnyTask
    result: TaskResult
    """The trials that the spec asks for, with their dense reference."""
    plans: list[TrialPlan]
    """Every trial that is known to be needed, methods in the order of the spec."""
    finished: dict[str, ModelRecord]
    """From the key of a plan to its record."""
    missing: list[tuple[TrialPlan, str]] = field(default_factory=list)
    """Plans without a result, and how they stand."""
    to_come: int = 0
    """Trials of later rounds, which the missing ones decide."""
    left_out: int = 0
    """Runs of the task that the spec does not ask for."""
    matched: int = 0
    """Runs found by their settings, because their keys are those of another spec or version."""
    data_hash: str = ""
    recorded_digest: str = ""
    """Of the spec that ran last."""
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    """Of every package, all that took part."""
    began: float = 0.0
    ended: float = 0.0
    """Seconds since the epoch, over all runs that are shown."""

    @property
    def dense(self) -> ModelRecord:
        return self.result.dense

    @property
    def metric(self) -> str:
        return self.dense.metric.name

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(plan.method_name for plan in self.plans))

    @property
    def reference(self) -> str:
        """The method that the others are compared with: the first."""
        return self.methods[0]

    @property
    def densities(self) -> list[float]:
        return sorted(self.spec.search.density, reverse=True)

    def runs(self) -> dict[str, dict[float, Runs]]:
        """Per method and density the runs that stand for it; methods in the order of the spec."""
        table = compared_runs(self.result)
        return {name: table[name] for name in self.methods if name in table}

    def plan_of(self, method: str) -> TrialPlan:
        """Any of a method's plans, for what its trials have in common."""
        return next(plan for plan in self.plans if plan.method_name == method)


def is_structured(method: MethodSpec) -> bool:
    """Whether what a method removes makes matrices smaller; single weights only become zero."""
    return not (method.kind == "agp" and method.granularity == "weight")


def read_results(reader: RunReader, spec: CampaignSpec, task: AnyTask) -> Results:
    """Find the runs that the spec asks for, and read their records.

    A run is found by its key. Keys change with the code, so a run with another key counts too if
    it has the same method name, seed and data, and the same settings as far as both have them.

    Raises:
        NotStartedError: Not even the dense reference is finished.
    """
    every = reader.runs()
    runs = [run for run in every if run.params.get("task") == task.name]
    dense_run = _dense_run(spec, task, runs)
    dense = reader.record(dense_run) if dense_run else None
    if dense_run is None or dense is None:
        raise NotStartedError(
            f"the dense reference of task {task.name!r} is not finished in MLflow's experiment "
            f"{spec.name!r}: there is nothing to compare yet"
        )
    parent = next((run for run in every if run.key == f"task:{task.name}"), None)
    search = _Search(reader, spec, task, dense, dense_run, runs)
    learns = spec.search.sampler != "random"
    earlier: list[EarlierTrial] = []
    if spec.search.warm_start is not None and parent is not None:
        earlier = reader.earlier(parent).of(spec, task, search.data_hash)
    search.run(reader.draws(parent) if learns and parent else Draws(), earlier)
    setting = reader.setting(parent) if parent else {}
    used = [dense_run, *search.used.values()]
    trials = list(search.finished.values())
    prints = [row.fingerprint for trial in trials for row in trial.speed]
    models = [run for run in runs if run.tags.get("kind") != "trunk"]
    others = sum(run.status == "FINISHED" for run in models) - sum(
        run.status == "FINISHED" for run in used
    )
    return Results(
        spec=spec,
        task=task,
        result=TaskResult(
            task=task.name,
            kind=task.kind,
            dense=dense,
            trials=trials,
            failed=list(search.failed.values()),
            stopped=list(search.stopped.values()),
            choice=Choice(key=None, sentence="", front=[], passed=[]),
            data=setting.get("data", {}),
        ),
        plans=search.plans,
        finished=search.finished,
        missing=search.missing,
        to_come=max(0, expected_trials(spec, task) - len(search.plans)),
        left_out=others,
        matched=search.matched + (dense_run.key != search.dense_key),
        data_hash=search.data_hash,
        recorded_digest=parent.tags.get("spec_hash", "") if parent else "",
        hardware=setting.get("hardware") or next(iter(prints), {}),
        versions=_versions(used),
        began=min(run.started for run in used),
        ended=max(run.ended or run.started for run in used),
    )


def _dense_run(spec: CampaignSpec, task: AnyTask, runs: Sequence[LoggedRun]) -> LoggedRun | None:
    """By key, or else the latest one with the spec's seed and training."""
    found = [run for run in runs if run.tags.get("kind") == "dense" and run.status == "FINISHED"]
    for run in found:
        if run.key == dense_key(spec, task, run.params.get("data_hash", "")):
            return run
    asked = flat({"seed": spec.seed, "dense": task.dense.model_dump()})
    return next((run for run in reversed(found) if _agrees(run, asked)), None)


def _agrees(run: LoggedRun, asked: dict[str, Any]) -> bool:
    """Whether a run has these params, as far as it has them at all."""
    return all(run.params.get(name, str(value)) == str(value) for name, value in asked.items())


class _Search:
    """Goes through the rounds of a campaign, as the training stage does, and finds its runs."""

    def __init__(
        self,
        reader: RunReader,
        spec: CampaignSpec,
        task: AnyTask,
        dense: ModelRecord,
        dense_run: LoggedRun,
        runs: Sequence[LoggedRun],
    ) -> None:
        self.reader, self.spec, self.task, self.dense = reader, spec, task, dense
        self.data_hash = dense_run.params.get("data_hash", "")
        self.dense_key = dense_key(spec, task, self.data_hash)
        self.runs = [
            run
            for run in runs
            if run.tags.get("kind") == "trial" and run.params.get("data_hash") == self.data_hash
        ]
        # of several with one key the first stands
        self.by_key = {run.key: run for run in reversed(self.runs)}
        self.taken: set[str] = set()
        self.plans: list[TrialPlan] = []
        self.used: dict[str, LoggedRun] = {}
        self.finished: dict[str, ModelRecord] = {}
        self.failed: dict[str, FailedTrial] = {}
        self.stopped: dict[str, StoppedTrial] = {}
        self.missing: list[tuple[TrialPlan, str]] = []
        self.matched = 0

    def run(self, draws: Draws, earlier: Sequence[EarlierTrial]) -> None:
        seen: set[str] = set()
        while True:
            self.plans = plan_trials(
                self.spec,
                self.task,
                self.data_hash,
                {key: record.quality for key, record in self.finished.items()},
                self.failed.keys() | self.stopped.keys(),
                self.dense.metric.higher_is_better,
                {key: record.excess for key, record in self.finished.items()},
                draws,
                earlier,
            )
            new = [plan for plan in self.plans if plan.key not in seen]
            if not new:
                break
            seen |= {plan.key for plan in new}
            for plan in new:
                self._take(plan)
        # in the order of the plans, not of the rounds
        self.finished = {p.key: self.finished[p.key] for p in self.plans if p.key in self.finished}

    def _take(self, plan: TrialPlan) -> None:
        run = self._run_of(plan)
        if run is None:
            self.missing.append((plan, "not started"))
            return
        self.used[plan.key] = run
        self.taken.add(run.run_id)
        self.matched += run.key != plan.key
        if run.status == "FAILED":
            self.failed[plan.key] = FailedTrial(
                key=plan.key,
                task=self.task.name,
                config=plan.method.model_dump(mode="json"),
                reason=run.tags.get("failure", "no reason was recorded"),
                method_name=plan.method_name,
                seed=plan.seed,
            )
            return
        if STOPPED_TAG in run.tags and run.status == "KILLED" and self.spec.search.stopping:
            self.stopped[plan.key] = self._stopped(plan, run)
            return
        record = self.reader.record(run) if run.status == "FINISHED" else None
        if record is not None:
            self.finished[plan.key] = replace(record, method_name=plan.method_name)
        elif run.status == "FINISHED":
            self.missing.append((plan, "its record cannot be read"))
        else:
            self.missing.append((plan, "running" if run.status == "RUNNING" else "stopped"))

    def _stopped(self, plan: TrialPlan, run: LoggedRun) -> StoppedTrial:
        return StoppedTrial(
            key=plan.key,
            task=self.task.name,
            config=plan.method.model_dump(mode="json"),
            method_name=plan.method_name,
            seed=plan.seed,
            rung=float(run.tags.get(STOPPED_RUNG, "nan")),
            step=int(run.tags.get(STOPPED_STEP, "0")),
            total_steps=training_steps(plan.method, self.task.dense.steps),
            reason=run.tags[STOPPED_TAG],
        )

    def _run_of(self, plan: TrialPlan) -> LoggedRun | None:
        own = self.by_key.get(plan.key)
        if own is not None and own.run_id not in self.taken:
            return own
        in_ladder = plan.trunk is not None
        free = [
            run
            for run in self.runs
            if run.run_id not in self.taken and ("ladder.trunk" in run.params) == in_ladder
        ]
        wanted = {"method": plan.method.model_dump(), "dense": self.task.dense.model_dump()}
        asked = flat(wanted | {"method_name": plan.method_name, "seed": plan.seed})
        alike = [run for run in free if _agrees(run, asked)]
        # the latest of those that got furthest
        return max(alike, key=lambda run: (run.status == "FINISHED", run.started), default=None)


def _versions(runs: Sequence[LoggedRun]) -> dict[str, list[str]]:
    prefix, found = "version.", dict[str, list[str]]()
    for run in runs:
        for name, value in run.tags.items():
            if name.startswith(prefix):
                values = found.setdefault(name.removeprefix(prefix), [])
                if value not in values:
                    values.append(value)
    return found

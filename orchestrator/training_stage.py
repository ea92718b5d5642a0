"""The stage that trains: one dense reference and the trials of a task, each a Tune trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from orchestrator import machines
from orchestrator.campaign_records import FailedTrial
from orchestrator.campaign_state import Site, TaskState
from orchestrator.draws import Draws
from orchestrator.errors import TrialError
from orchestrator.ladder_stage import lacking, models_above, run_ladders
from orchestrator.launch import Fixed, Launch
from orchestrator.launching import launch_of
from orchestrator.method_search import TrialPlan
from orchestrator.progress import tune_callback
from orchestrator.recording import record_model, trained
from orchestrator.records import ModelRecord, RecordError
from orchestrator.room import DRIVER, concurrent_trials
from orchestrator.search import draws_among, expected_trials, plan_trials
from orchestrator.stopping.signals import Signals
from orchestrator.stopping_stage import is_stopped, rungs_of, settle_stop, without
from orchestrator.trial import tune_trial
from orchestrator.trial_keys import dense_key
from orchestrator.wording import stopped_early

logger = logging.getLogger(__name__)

MAX_LOST_TRIALS = 8
"""Restarts of a trial's own process, which does little and lives on the head node: each costs
seconds and the steps since the last state. One that dies nine times is not unlucky."""


class TrainingStage:
    """Launches what has no finished model yet, and collects records and failures."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def run(self, state: TaskState) -> None:
        """Train what is missing of a task: its dense reference, then its trials in rounds."""
        spec, progress = self.site.spec, self.site.progress
        state.dense = self._dense(state)
        state.rungs = rungs_of(self.site, state)
        records: dict[str, ModelRecord] = {}
        draws = Draws(self.site.layout.draws)
        while True:
            ended = {trial.key for trial in state.failed}
            ended |= {trial.key for trial in state.stopped}
            state.plans = plan_trials(
                spec,
                state.task,
                state.data.content_hash,
                {key: record.quality for key, record in records.items()},
                ended,
                state.dense.metric.higher_is_better,
                {key: record.excess for key, record in records.items()},
                draws,
                state.earlier,
            )
            self._keep_draws(state)
            new = without(state.plans, records, ended)
            if not new:
                break
            self._round(state, new, records)
        state.trials = [records[plan.key] for plan in state.plans if plan.key in records]
        if state.stopped:
            stops = [(trial.rung, trial.saved_steps) for trial in state.stopped]
            progress.line(f"{state.task.name}: {stopped_early(stops)}")
        # of a method whose draws all failed nothing more is to come
        progress.total_models += len(state.plans) - expected_trials(spec, state.task)

    def _keep_draws(self, state: TaskState) -> None:
        """For whoever goes on elsewhere, and for who reads the results from MLflow alone."""
        path = self.site.layout.draws
        if self.site.spec.search.sampler != "random" and path.exists():
            self.site.layout.mirror.push_file(path)
            self.site.tracking.writer(state.run_id).artifact(path)

    def _dense(self, state: TaskState) -> ModelRecord:
        """The dense reference, trained if there is none."""
        name = f"{state.task.name} dense"
        key = dense_key(self.site.spec, state.task, state.data.content_hash)
        record = self._existing(key)
        if record is not None:
            self.site.progress.done(name, "already finished", reused=True)
            return record
        launch = launch_of(self.site, state, key, None)
        record = self._taken_up(name, launch)
        if record is None:
            self.run_trials(state, {name: launch})
            record = self._recorded(launch)
        if record is None:
            reason = state.failed[-1].reason if state.failed else "no record was left"
            raise TrialError(f"the dense reference of task {state.task.name} failed: {reason}", key)
        return record

    def _round(
        self, state: TaskState, plans: list[TrialPlan], records: dict[str, ModelRecord]
    ) -> None:
        """Every plan ends as one of `records`, among the failed or among the stopped."""
        launches: dict[str, Launch] = {}
        ladders: dict[str, list[TrialPlan]] = {}
        self._judge(state, records)
        existing = {plan.key: self._existing(plan.key) for plan in plans}
        again = lacking(self.site, plans, existing)
        for plan in plans:
            name = f"{state.task.name} {plan.name}"
            record = existing[plan.key]
            if plan.key in again:
                self.site.progress.line(f"{name}: trained again, its weights were given up")
                record = None
            if record is not None:
                self.site.progress.done(name, "already finished", reused=True)
            elif is_stopped(self.site, state, plan.key):
                found = settle_stop(self.site, state, plan)
                self.site.progress.done(
                    name, f"already stopped at rung {found.rung:g}", reused=True
                )
            else:
                launch = launch_of(self.site, state, plan.key, plan)
                record = self._taken_up(name, launch)
                if record is None:
                    launches[name] = launch
                    if plan.trunk is not None:
                        ladders.setdefault(plan.trunk, []).append(plan)
            if record is not None:
                records[plan.key] = record
        if not launches:
            return
        self._judge(state, records)
        if ladders:
            run_ladders(self, state, ladders, launches)
        else:
            self.run_trials(state, launches)
        failed = {trial.key for trial in state.failed}
        by_key = {plan.key: plan for plan in plans}
        for launch in launches.values():
            record = None if launch.key in failed else self._recorded(launch)
            if record is not None:
                records[launch.key] = record
            elif is_stopped(self.site, state, launch.key):
                settle_stop(self.site, state, by_key[launch.key], launch)
            elif launch.key not in failed:
                state.failed.append(failure_of(launch, "no record was left"))

    def _judge(self, state: TaskState, records: dict[str, ModelRecord]) -> None:
        """Tell the rungs whom they judge, and what has ended."""
        if state.rungs is not None:
            state.rungs.plan(draws_among(self.site.spec, state.plans), records)

    def _existing(self, key: str) -> ModelRecord | None:
        """A finished model with this key: both its record and its FINISHED run."""
        path, mirror = self.site.layout.record(key), self.site.layout.mirror
        if not path.exists():
            mirror.fetch_growing(path.parent)  # a trial on another machine may have written it
        if not path.exists() or not self.site.tracking.finished(key):
            return None
        try:
            record = ModelRecord.load(path)
        except RecordError as error:
            logger.warning("%s; the model is trained again", error)
            return None
        self.site.house.know(record)
        return record

    def _taken_up(self, name: str, launch: Launch) -> ModelRecord | None:
        """Of a model that an earlier campaign trained, but whose run it could not end."""
        record = self._recorded(launch)
        if record is not None:
            self.site.progress.done(name, "already trained; its run is written", reused=True)
        return record

    def _recorded(self, launch: Launch) -> ModelRecord | None:
        """The record of a model whose files are there; a run that MLflow lacks is written now, and
        a server that is away is waited for."""
        record = self._existing(launch.key)
        if record is not None:
            return record
        record = trained(launch)
        if record is None:
            return None
        record = record_model(launch, record, self.site.tracking.writer(launch.run_id))
        self.site.house.know(record)
        return record

    def run_trials(self, state: TaskState, launches: dict[str, Launch]) -> None:
        """Tune runs one trial per launch; failures are kept with their reason."""
        rungs, signals = state.rungs, Signals()
        if rungs is not None:
            launches = {
                name: replace(launch, stop_signal=signals.key(launch.key))
                if rungs.judges(launch.key)
                else launch
                for name, launch in launches.items()
            }
        resources = self.site.spec.resources_of(state.task)
        house, left = self.site.house, {launch.key for launch in launches.values()}
        # each model of a chain begins with the one above it
        chained = [launch for launch in launches.values() if launch.then]
        ladders = {each["job"]["key"] for launch in chained for each in launch.then}
        ladders |= {launch.key for launch in chained}
        left |= ladders
        used = ladders | models_above(launches.values())
        house.settle(left, resources.concurrent_trials, used)

        def ended(key: str, result: dict[str, Any]) -> None:
            left.discard(key)
            if rungs is not None and (stopped := result.get("stopped")):
                rungs.ended(key, stopped["step"], stopped["recorded"])
            house.ended(key, result)
            house.settle(left, resources.concurrent_trials, used)

        available = machines.wait_to_fit(resources, state.task.name, self.site.progress.line)
        names = {plan.key: f"{state.task.name} {plan.name}" for plan in state.plans}
        names |= {launch.key: name for name, launch in launches.items()}
        if len(left) > 1:
            self.site.progress.line(f"{state.task.name}: {len(left)} trainings to come")
        callback = tune_callback(self.site.progress, names, ended)
        at_once = concurrent_trials(resources, available)
        try:
            results = self._tuner(state, launches, callback, at_once, signals).fit()
        finally:
            signals.forget()
        self._note_failures(state, results)

    def _tuner(
        self,
        state: TaskState,
        launches: Mapping[str, Launch],
        callback: Any,
        at_once: int,
        signals: Signals,
    ) -> Any:
        """Tune, with one trial per launch."""
        from ray import tune

        from orchestrator.stopping.scheduler import FrontScheduler

        rungs = state.rungs
        return tune.Tuner(
            tune.with_resources(partial(tune_trial, train=self.site.train), {DRIVER: 1}),
            param_space={"launch": tune.grid_search([Fixed(asdict(v)) for v in launches.values()])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once,
                # a process takes longer to start and import than a trial's bookkeeping takes
                reuse_actors=True,
                scheduler=None if rungs is None else FrontScheduler(rungs, signals),
                trial_dirname_creator=lambda trial: trial.config["launch"]["job"]["key"],
            ),
            run_config=tune.RunConfig(
                name=f"{state.task.name}-{int(time.time())}",
                storage_path=str(self.site.layout.tune),
                failure_config=tune.FailureConfig(max_failures=MAX_LOST_TRIALS),
                callbacks=[callback],
                verbose=0,
            ),
        )

    def _note_failures(self, state: TaskState, results: Iterable[Any]) -> None:
        """Of what left no model and was not stopped early; the runs are ended, too.

        Args:
            state: Of the task; gets them.
            results: Of Tune's trials.
        """
        for result in results:
            launch, metrics = Launch(**(result.config or {})["launch"]), result.metrics or {}
            failure = metrics.get("failure")
            if result.error is not None:
                failure = f"{type(result.error).__name__}: {str(result.error).splitlines()[-1]}"
            failed = metrics.get("failures", {}) if launch.then and not result.error else {}
            for each in [launch, *(Launch(**fields) for fields in launch.then)]:
                reason = failed.get(each.key, failure)
                if is_stopped(self.site, state, each.key):
                    continue
                # of a trial whose process died, what is home is not lost
                if reason and (each.is_trunk or trained(each) is None):
                    self.site.tracking.writer(each.run_id).end("FAILED", reason)
                    state.failed.append(failure_of(each, reason))


def failure_of(launch: Launch, reason: str) -> FailedTrial:
    return FailedTrial(
        key=launch.key,
        task=launch.job["task"]["name"],
        config=launch.job["method"],
        reason=reason,
        method_name=launch.method_name,
        seed=launch.job["seed"],
    )

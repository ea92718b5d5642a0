"""What a task trains, round by round: its dense reference, then its trials."""

from __future__ import annotations

import logging
from collections.abc import Generator

from orchestrator.adopting import adopt
from orchestrator.campaign_records import FailedTrial
from orchestrator.campaign_state import Site, TaskState
from orchestrator.draws import Draws
from orchestrator.errors import TrialError
from orchestrator.ladder_stage import lacking, run_ladders
from orchestrator.launch import Launch
from orchestrator.launching import launch_of
from orchestrator.method_search import TrialPlan
from orchestrator.recording import record_model, trained
from orchestrator.records import ModelRecord, RecordError
from orchestrator.search import draws_among, expected_trials, plan_trials
from orchestrator.stopping_stage import is_stopped, rungs_of, settle_stop, without
from orchestrator.trial_keys import dense_key
from orchestrator.wording import stopped_early

logger = logging.getLogger(__name__)

Round = dict[str, Launch]
"""Trainings that may run side by side, by what people call them."""


class TrainingStage:
    """Launches what has no finished model yet, and collects records and failures.

    A round that a method yields is over, its failures noted in the task's state, before the next is
    asked for: who trains it is nothing that is known here (`trainings`).
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        # of all tasks, in one file
        self._draws = Draws(site.layout.draws)

    def train(self, state: TaskState) -> Generator[Round, None, None]:
        """What is missing of a task: its dense reference, then its trials in rounds.

        Args:
            state: Of the task; gets the dense reference, the trials and what was stopped.

        Raises:
            TrialError: The dense reference failed.
        """
        spec, progress = self.site.spec, self.site.progress
        state.dense = yield from self._dense(state)
        state.rungs = rungs_of(self.site, state)
        records: dict[str, ModelRecord] = {}
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
                self._draws,
                state.earlier,
            )
            self._keep_draws(state)
            new = without(state.plans, records, ended)
            if not new:
                break
            yield from self._round(state, new, records)
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

    def _dense(self, state: TaskState) -> Generator[Round, None, ModelRecord]:
        """The dense reference, trained if there is none."""
        name = f"{state.task.name} dense"
        key = dense_key(self.site.spec, state.task, state.data.content_hash)
        record = self._existing(key)
        if record is not None:
            self.site.progress.done(name, "already finished", reused=True)
            return record
        launch = launch_of(self.site, state, key, None)
        record = self._taken_up(name, launch) or self._adopted(name, launch)
        if record is None:
            yield {name: launch}
            record = self._recorded(launch)
        if record is None:
            reason = state.failed[-1].reason if state.failed else "no record was left"
            raise TrialError(f"the dense reference of task {state.task.name} failed: {reason}", key)
        return record

    def _round(
        self, state: TaskState, plans: list[TrialPlan], records: dict[str, ModelRecord]
    ) -> Generator[Round, None, None]:
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
            yield from run_ladders(self.site, state, ladders, launches)
        else:
            yield launches
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

    def _adopted(self, name: str, launch: Launch) -> ModelRecord | None:
        """Of a model that another campaign of the storage has trained."""
        campaign = adopt(launch)
        if campaign is None:
            return None
        self.site.tracking.writer(launch.run_id).tags({"taken_over_from": campaign})
        record = self._recorded(launch)
        if record is not None:
            text = f"taken over from campaign {campaign!r}, which trained it"
            self.site.progress.done(name, text, reused=True)
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


def failure_of(launch: Launch, reason: str) -> FailedTrial:
    return FailedTrial(
        key=launch.key,
        task=launch.job["task"]["name"],
        config=launch.job["method"],
        reason=reason,
        method_name=launch.method_name,
        seed=launch.job["seed"],
    )

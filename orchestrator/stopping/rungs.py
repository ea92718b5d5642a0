"""The rungs of one task: which trials they judge, what they have seen, whom they stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.errors import CampaignError
from orchestrator.method_search import TrialPlan
from orchestrator.records import ModelRecord, excess_of
from orchestrator.spec_method import MethodSpec
from orchestrator.spec_stopping import StoppingSpec, fixed_from, milestone
from orchestrator.stopping.judge import Figures, judge
from orchestrator.stopping.notes import Note, Notes, Passed
from orchestrator.stopping.outlook import outlook

logger = logging.getLogger(__name__)

FIXED = ("finetune", "from-scratch")
"""Phases in which the structure of a model no longer changes."""


class Rungs:
    """Of one task, in the campaign's driver.

    Args:
        spec: Rungs, and how many go on.
        higher_is_better: Of the task's metric.
        notes: Of the task.
    """

    def __init__(self, spec: StoppingSpec, higher_is_better: bool, notes: Notes) -> None:
        self._spec, self._notes = spec, notes
        self._sign = -1.0 if higher_is_better else 1.0
        self._draws: dict[str, TrialPlan] = {}
        self._seen: dict[float, dict[str, Figures]] = {rung: {} for rung in spec.rungs}
        self._losses: dict[str, dict[int, float]] = {}
        """Of each draw that trains: step -> loss, since its structure is fixed."""

    @property
    def stopped(self) -> set[str]:
        """Keys of the draws that were stopped, with a model nevertheless if they had just ended."""
        return {note.key for note in self._notes if note.stopped and note.key in self._draws}

    def note(self, key: str) -> Note:
        """Of a draw that was stopped."""
        note = self._notes.get(key)
        assert note is not None
        return note

    def judges(self, key: str) -> bool:
        """Whether a trial can be stopped at all."""
        return key in self._draws

    def plan(self, draws: Iterable[TrialPlan], finished: Mapping[str, ModelRecord]) -> None:
        """Who is judged from now on, and what is known of them.

        Args:
            draws: Trials that may be stopped.
            finished: Key -> record, of models that are there, whether rungs saw them or not.
        """
        self._draws = {plan.key: plan for plan in draws}
        for key, plan in self._draws.items():
            note, record = self._notes.get(key), finished.get(key)
            for passed in note.passed if note else ():
                # of a version that compared by the validation itself
                loss = self._loss(passed.validation) if passed.outlook is None else passed.outlook
                self._see(plan, passed.rung, loss, passed.excess)
            if record is not None:
                self._see_curve(plan, record)

    def arrive(self, key: str, report: Mapping[str, Any]) -> Passed | None:
        """A report of a training, in the order in which they come.

        Args:
            key: Of its model.
            report: `step`, `total_steps`, `phase`; `validation` if it was finite,
                `realized_density` after a projection, `between` if there was no validation.

        Returns:
            Where it is to stop; None if it goes on. What is returned has been written down.
        """
        plan = self._draws.get(key)
        if plan is None or report.get("phase") not in FIXED or "total_steps" not in report:
            return None
        if report.get("between"):
            return None
        total, step = int(report["total_steps"]), int(report["step"])
        # one that went back to an earlier state has no later losses any more
        earlier = {s: each for s, each in self._losses.get(key, {}).items() if s < step}
        losses = self._losses[key] = earlier | {step: self._loss(report.get("validation"))}
        rung = rung_at(self._spec.rungs, plan.method, total, step)
        if rung is None or step >= total or key in self._seen[rung]:
            return None
        loss = outlook(losses, fixed_from(plan.method), total)
        if loss is None:
            return None
        density = report.get("realized_density")
        excess = excess_of(plan.method.density, density, plan.method.budget)
        mine = _figures(plan, loss, excess)
        others = list(self._seen[rung].values())
        verdict = judge(mine, others, self._spec.keep, self._spec.at_least)
        passed = Passed(
            rung=rung,
            step=step,
            validation=report.get("validation"),
            outlook=loss if math.isfinite(loss) else None,
            excess=excess,
            density=density,
            **asdict(verdict),
        )
        try:
            self._notes.passed(key, total, passed)
        except CampaignError as error:
            # what is not written down is not done
            logger.warning("%s is not judged at rung %g: %s", plan.name, rung, error)
            return None
        self._seen[rung][key] = mine
        return None if verdict.kept else passed

    def ended(self, key: str, step: int | None = None, recorded: bool = False) -> None:
        """A draw that was stopped is over; what cannot be written is known at the next start."""
        try:
            self._notes.ended(key, step, recorded)
        except CampaignError as error:
            logger.warning("%s", error)

    def _see(self, plan: TrialPlan, rung: float, loss: float, excess: float) -> None:
        if rung in self._seen:
            self._seen[rung].setdefault(plan.key, _figures(plan, loss, excess))

    def _see_curve(self, plan: TrialPlan, record: ModelRecord) -> None:
        """What reports would have told of a model that was trained without rungs."""
        total = record.curve[-1].step if record.curve else 0
        losses: dict[int, float] = {}
        for point in record.curve:
            if point.phase in FIXED and point.validation is not None and point.step < total:
                losses[point.step] = self._loss(point.validation)
                rung = rung_at(self._spec.rungs, plan.method, total, point.step)
                loss = outlook(losses, fixed_from(plan.method), total)
                if rung is not None and loss is not None:
                    self._see(plan, rung, loss, record.excess)

    def _loss(self, validation: float | None) -> float:
        known = validation is not None and math.isfinite(validation)
        return self._sign * validation if known and validation is not None else math.inf


def _figures(plan: TrialPlan, loss: float, excess: float) -> Figures:
    return Figures(cell=(plan.method_name, plan.method.density), loss=loss, excess=excess)


def rung_at(rungs: Sequence[float], method: MethodSpec, total: int, step: int) -> float | None:
    """The highest rung that a training has reached, of those at which its structure is fixed.

    Args:
        rungs: Ascending parts of the steps.
        method: Of the trial; its gates move until its `gated_steps`.
        total: Steps of the training.
        step: Of a validation, from 1.
    """
    reached = [rung for rung in rungs if fixed_from(method) <= milestone(rung, total) <= step]
    return max(reached, default=None)

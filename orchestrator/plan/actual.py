"""A finished campaign against its plan: hours and bytes, part by part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.layout import Layout
from orchestrator.plan import disk
from orchestrator.plan.figures import Range, total
from orchestrator.plan.hours import AFTER, BEFORE, DENSE_TRAINING, FROM_SCRATCH, TRAINING
from orchestrator.plan.plan import Plan, plan_path
from orchestrator.plan.profile import ProfileError
from orchestrator.records import ModelRecord
from orchestrator.wording import plural

logger = logging.getLogger(__name__)

GATED_PHASES = ("anneal", "hold")
ALL_TRAINING, WALL, ALL_BYTES = "all training", "the whole campaign", "all that is kept"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One figure, planned and found; seconds or bytes."""

    part: str
    task: str
    """Empty for the whole campaign."""
    planned: Range
    actual: float

    @property
    def error(self) -> float:
        """(planned - actual) / actual; 0 of nothing."""
        return (self.planned.value - self.actual) / self.actual if self.actual else 0.0

    @property
    def within(self) -> bool:
        """Whether it lies in the planned range."""
        return self.planned.low <= self.actual <= self.planned.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What was planned and what it came to."""

    made: str
    """When the plan was made, and from what."""
    seconds: list[Compared]
    bytes: list[Compared]
    notes: list[str] = field(default_factory=list)
    """What makes figures that cannot be compared."""


def against_plan(layout: Layout, result: CampaignResult, local: bool) -> Comparison | None:
    """A campaign against the plan in its folder, if there is one that can be read.

    Args:
        layout: Its folders.
        result: What it came to.
        local: Whether MLflow's store lies in the storage.
    """
    try:
        plan = Plan.load(plan_path(layout))
    except ProfileError as error:
        logger.warning("%s", error)
        return None
    if plan is None:
        return None
    folders = [str(layout.cache / task.data_hash) for task in plan.tasks]
    return compare(plan, result, disk.found_bytes(layout, folders, local))


def compare(plan: Plan, result: CampaignResult, found: dict[str, int]) -> Comparison:
    """Part by part.

    Args:
        plan: Made before.
        result: Of the campaign.
        found: Bytes on disk, by `disk.KEPT_PARTS`; parts that cannot be seen are left out.
    """
    notes = _notes(plan, result)
    seconds = []
    planned = {task.task: task.hours for task in plan.tasks if task.hours is not None}
    for task in result.tasks:
        if (hours := planned.get(task.task)) is None:
            continue
        actual = training_seconds(task)
        seconds += [
            Compared(part=part, task=task.task, planned=hours.parts[part], actual=actual[part])
            for part in TRAINING
            if part in hours.parts and actual.get(part)
        ]
    if seconds:
        everything = Compared(
            part=ALL_TRAINING,
            task="",
            planned=total(row.planned for row in seconds),
            actual=sum(row.actual for row in seconds),
        )
        seconds.append(everything)
    if plan.seconds is not None and in_one_go(result):
        seconds.append(Compared(part=WALL, task="", planned=plan.seconds, actual=result.seconds))
    sizes = [
        Compared(part=part, task="", planned=_exactly(plan.bytes[part]), actual=found[part])
        for part in disk.KEPT_PARTS
        if part in found
    ]
    kept = Compared(
        part=ALL_BYTES,
        task="",
        planned=total(row.planned for row in sizes),
        actual=sum(row.actual for row in sizes),
    )
    made = f"{plan.made.split('T')[0]}, from {_SOURCES[plan.source]}"
    return Comparison(made=made, seconds=seconds, bytes=[*sizes, kept], notes=notes)


_SOURCES = {
    "probe": "a probe on the machine",
    "profile": "a profile of another probe",
    "counts": "counts alone: bytes, no hours",
}


def training_seconds(task: TaskResult) -> dict[str, float]:
    """What the records tell of a task's trainings, by the parts of a plan."""
    found = dict.fromkeys(TRAINING, 0.0)
    found[DENSE_TRAINING] = task.dense.train_seconds
    for trial in task.trials:
        if trial.config.get("kind") == "from-scratch":
            found[FROM_SCRATCH] += trial.train_seconds
            continue
        before = gated_seconds(trial)
        found[BEFORE] += before
        found[AFTER] += trial.train_seconds - before
    return found


def gated_seconds(trial: ModelRecord) -> float:
    """Until the end of the steps before the projection; 0 without such steps."""
    return max((p.seconds for p in trial.curve if p.phase in GATED_PHASES), default=0.0)


def in_one_go(result: CampaignResult) -> bool:
    """Whether all models were trained by the driver that ended the campaign, so that its time is
    the campaign's."""
    began = datetime.fromisoformat(result.started).timestamp()
    records = [r for task in result.tasks for r in (task.dense, *task.trials)]
    # starts are kept in whole seconds
    return all(r.finished is not None and r.finished >= began - 1 for r in records)


def _notes(plan: Plan, result: CampaignResult) -> list[str]:
    notes = []
    if plan.spec_hash != result.spec_hash:
        notes.append("the plan was made for another version of the spec")
    if not in_one_go(result):
        notes.append(
            "models were taken over from an earlier start, so the whole time is not compared"
        )
    for task, planned in _paired(result.tasks, plan):
        if len(task.trials) != planned:
            found = plural(len(task.trials), "finished trial")
            found += f", {len(task.stopped)} stopped early" if task.stopped else ""
            notes.append(f"task {task.task}: {planned} planned, {found}")
    return notes


def _paired(tasks: Sequence[TaskResult], plan: Plan) -> list[tuple[TaskResult, int]]:
    planned = {task.task: task.trials for task in plan.tasks}
    return [(task, planned[task.task]) for task in tasks if task.task in planned]


def _exactly(value: float) -> Range:
    return Range(value=value, low=value, high=value)

"""How long the counted work takes, at the costs of a profile."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.plan.figures import JobCost, Range, at_density, total
from orchestrator.plan.overhead import Overhead
from orchestrator.plan.profile import TaskProfile
from orchestrator.plan.work import FINETUNE, GATED, SCRATCH, SMALL, WHOLE, ModelWork, TaskWork

DENSE_TRAINING, BEFORE, AFTER, FROM_SCRATCH, EXPORT, AROUND, MEASURING, END = (
    "dense training",
    "trials, to the projection",
    "trials, after it",
    "small models from scratch",
    "evaluation of exports",
    "around trainings",
    "measuring",
    "choice and registry",
)
"""Parts of a task's time. The first four are what records tell as seconds of training."""
PARTS = (DENSE_TRAINING, BEFORE, AFTER, FROM_SCRATCH, EXPORT, AROUND, MEASURING, END)
TRAINING = PARTS[:4]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelHours:
    """One model's seconds on its workers."""

    parts: dict[str, Range]

    @property
    def training(self) -> Range:
        return total(self.parts[part] for part in TRAINING if part in self.parts)

    @property
    def whole(self) -> Range:
        return total(self.parts.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskHours:
    """A task's seconds."""

    side_by_side: int
    """Trials that run at once."""
    parts: dict[str, Range]
    """Summed over models, each for itself."""
    wall: Range
    """From the task's first trial to its last measurement, and its end, with no other task."""
    worker: Range
    """Of all workers of all trials together, while they are held."""
    idle: float
    """Part of the places for trials, 0 to 1, that wait for the last ones of a round."""


def model_hours(work: ModelWork, cost: JobCost, overhead: Overhead) -> ModelHours:
    """One model, by the parts that records tell apart."""

    def steps(phase: str) -> Range:
        return cost.step_s.get(phase, Range()) * work.steps.get(phase, 0)

    def validation(kind: str) -> Range:
        return cost.validation_s.get(kind, Range())

    def validations(kind: str, besides: int) -> Range:
        """Those of the training, each of which is reported; besides them there are so many."""
        number = work.validations.get(kind, besides) - besides
        return (validation(kind) + overhead.report_s) * number

    around = {
        EXPORT: cost.export_s + validation(SMALL) + cost.test_s,
        AROUND: overhead.trial_s,
    }
    if not work.method:
        training = {DENSE_TRAINING: cost.setup_s + steps("dense") + validations(SMALL, 1)}
    elif SCRATCH in work.steps:
        training = {FROM_SCRATCH: cost.setup_s + steps(SCRATCH) + validations(SMALL, 1)}
    else:
        # a curve tells the end of the gated steps; what follows it is told with the other steps
        before = cost.setup_s + steps(GATED) + validations(WHOLE, 1)
        at_projection = validation(WHOLE) + cost.projection_s + validation(SMALL)
        after = at_projection + steps(FINETUNE) + validations(SMALL, 2)
        training = (
            {BEFORE: before, AFTER: after} if GATED in work.steps else {AFTER: before + after}
        )
    return ModelHours(parts=training | around)


def round_hours(work: TaskWork, profile: TaskProfile, overhead: Overhead) -> list[list[ModelHours]]:
    """The models of a task, round by round; the first is that of the dense reference."""

    def hours(model: ModelWork) -> ModelHours:
        costs = profile.of(model) if model.method else [profile.dense]
        return model_hours(model, at_density(costs, model.density), overhead)

    return [[hours(model) for model in each] for each in [[work.dense], *work.rounds]]


def task_hours(
    work: TaskWork, profile: TaskProfile, overhead: Overhead, side_by_side: int
) -> TaskHours:
    """All models of a task, in its rounds, as if the machines were its own.

    Args:
        work: Counted.
        profile: Of its costs.
        overhead: Of the machine.
        side_by_side: Trials that find room at once.
    """
    (dense,), *rounds = round_hours(work, profile, overhead)
    parts = {part: Range() for part in PARTS}
    trials = [trial for each in rounds for trial in each]
    for model in [dense, *trials]:
        for part, seconds in model.parts.items():
            parts[part] += seconds
    parts[AROUND] += overhead.search_s
    parts[MEASURING] = profile.timing_s * work.timings + profile.int8_s * work.int8
    parts[END] = overhead.task_s
    training = [makespan([m.whole for m in each], side_by_side) for each in [[dense], *rounds]]
    wall = total(training) + overhead.search_s + parts[MEASURING] + parts[END]
    busy = sum(trial.whole.value for trial in trials)
    held = sum(seconds.value for seconds in training[1:]) * side_by_side
    worker = total(model.training + model.parts[EXPORT] for model in [dense, *trials])
    return TaskHours(
        side_by_side=side_by_side,
        parts={part: seconds for part, seconds in parts.items() if seconds.high},
        wall=wall,
        worker=worker * work.workers,
        idle=1 - busy / held if held else 0.0,
    )


def makespan(durations: Sequence[Range], places: int) -> Range:
    """From the first to the last end, if each begins as soon as a place is free, in order."""

    def ends(choose: Callable[[Range], float]) -> float:
        free = [0.0] * min(places, max(1, len(durations)))
        for duration in durations:
            heapq.heappush(free, heapq.heappop(free) + choose(duration))
        return max(free)

    return Range(
        value=ends(lambda d: d.value), low=ends(lambda d: d.low), high=ends(lambda d: d.high)
    )

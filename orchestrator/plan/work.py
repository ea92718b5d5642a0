"""What a spec asks for, counted: models, steps, validations, measurements. No machine is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import lcm
from typing import Any

from orchestrator.ladder import link_steps, plan_steps
from orchestrator.method_search import TrialPlan
from orchestrator.search import expected_rounds
from orchestrator.snapshot import KEPT
from orchestrator.spec import CampaignSpec, MethodSpec, content_hash
from orchestrator.spec_search import SearchSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.training import POINTS_PER_STRETCH

DENSE, GATED, FINETUNE, SCRATCH = "dense", "gated", "finetune", "from-scratch"
"""Phases of training: the dense reference; a trial before and after its projection; a small model
from scratch."""
PHASES = (DENSE, GATED, FINETUNE, SCRATCH)
WHOLE, SMALL = "whole", "small"
"""What is validated: a model before its projection, and what is exported."""

SAME_COST = {
    "density",
    "steps",
    "learning_rate",
    "finetune_learning_rate",
    "penalty_lr",
    "gate_lr",
    "gated_fraction",
    "anneal_fraction",
    "price_floor",
    "temperature",
    "init_open_prob",
    "floor_fraction",
    "allocation",
    "scope",
    "distill_temperature",
    "max_grad_norm",
}
"""Fields of a method that change how many steps there are or where they lead, and hardly what one
costs. The density does, and is kept apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelWork:
    """One model that is to be trained."""

    name: str
    setting: str
    """Models of one setting cost alike, apart from their density; `dense` for the reference."""
    density: float
    steps: dict[str, int]
    """By phase; those without steps are left out."""
    validations: dict[str, int]
    """Over the whole split, in training and for the export, of `WHOLE` and `SMALL` models."""
    points: dict[str, int]
    """Of its curve, by phase."""
    method: dict[str, Any] = field(default_factory=dict)
    """Fields of the method; empty for the reference."""

    @property
    def num_steps(self) -> int:
        return sum(self.steps.values())

    @property
    def num_points(self) -> int:
        return sum(self.points.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskWork:
    """One task."""

    name: str
    workers: int
    side_by_side: int
    """Trials, as the spec asks."""
    dense: ModelWork
    rounds: list[list[ModelWork]]
    """Trials that may run side by side; a round begins when the one before it is over."""
    timings: int
    """Of speed: models, each with every batch size."""
    int8: int
    """Models that are measured in 8-bit integers too."""
    snapshots: int = KEPT
    """States of a training on its way that are kept."""

    @property
    def trials(self) -> list[ModelWork]:
        return [trial for each in self.rounds for trial in each]

    @property
    def models(self) -> list[ModelWork]:
        return [self.dense, *self.trials]

    def steps(self) -> dict[str, int]:
        """Of all models, by phase."""
        return {phase: sum(m.steps.get(phase, 0) for m in self.models) for phase in PHASES}


def task_work(spec: CampaignSpec, task: AnyTask) -> TaskWork:
    """Everything that a task trains and measures, if no trial fails."""
    resources = spec.resources_of(task)
    rounds = [
        [trial_work(task, plan, spec.search) for plan in each]
        for each in expected_rounds(spec, task)
    ]
    num_trials = sum(map(len, rounds))
    return TaskWork(
        name=task.name,
        workers=resources.workers,
        side_by_side=resources.concurrent_trials,
        dense=dense_work(task),
        rounds=rounds,
        timings=num_trials,
        int8=1 + num_trials if spec.measure.int8 else 0,
        snapshots=spec.retention.snapshots,
    )


def dense_work(task: AnyTask) -> ModelWork:
    """The dense reference, which is validated and exported even if it is not trained."""
    steps, every = task.dense.steps, task.evaluate_every
    return ModelWork(
        name=DENSE,
        setting=DENSE,
        density=1.0,
        steps={DENSE: steps} if steps else {},
        validations={SMALL: stretch_validations(steps, every) + 1},
        points={DENSE: stretch_points(steps, every)},
    )


def trial_work(task: AnyTask, plan: TrialPlan, search: SearchSpec) -> ModelWork:
    """One trial: before its projection, and after it."""
    method, every = plan.method, task.evaluate_every
    gated, finetune = _parts(plan, search)
    if method.kind == "from-scratch":
        # for as long as the dense model and its compression together
        steps = {SCRATCH: method.steps + task.dense.steps}
        validations = {SMALL: stretch_validations(steps[SCRATCH], every) + 1}
    else:
        steps = {GATED: gated, FINETUNE: finetune}
        validations = {
            # just before the projection once more
            WHOLE: stretch_validations(gated, every) + 1,
            # just after it, and the export
            SMALL: 1 + stretch_validations(finetune, every) + 1,
        }
    return ModelWork(
        name=plan.name,
        setting=setting_of(method),
        density=method.density,
        steps={phase: number for phase, number in steps.items() if number},
        validations=validations,
        points={phase: stretch_points(number, every) for phase, number in steps.items()},
        method=method.model_dump(mode="json"),
    )


def _parts(plan: TrialPlan, search: SearchSpec) -> tuple[int, int]:
    """Steps before the projection and after it; those of a ladder's trunk count where they lead to
    the next density."""
    method = plan.method
    if search.ladder is None:
        return method.gated_steps, method.finetune_steps
    rungs, branch_steps = plan_steps(search.ladder, method, search.descending)
    rung = search.descending.index(method.density)
    own = rungs[rung] - (rungs[rung - 1] if rung else 0)
    if search.ladder.by == "chain":
        return link_steps(method, own)
    return own, branch_steps


def setting_of(method: MethodSpec) -> str:
    """Names what a step of the method costs: its kind, and a hash of the fields that matter."""
    values = method.model_dump(mode="json")
    deciding = {name: value for name, value in values.items() if name not in SAME_COST}
    # a teacher costs what it costs, whatever the weight of its answers
    deciding["distill"] = bool(method.distill)
    deciding["distill_hidden"] = bool(method.distill_hidden)
    return f"{method.kind}-{content_hash(deciding, 6)}"


def stretch_validations(steps: int, every: int) -> int:
    """Of a stretch of training: every so many steps, and after the last one."""
    return -(-steps // every)


def stretch_points(steps: int, every: int) -> int:
    """Points of a stretch's curve: `POINTS_PER_STRETCH` or so, and one per validation."""
    if steps == 0:
        return 0
    log_every = max(1, steps // POINTS_PER_STRETCH)
    both = lcm(every, log_every)
    points = steps // every + steps // log_every - steps // both
    return points + (1 if steps % every and steps % log_every else 0)


def settings(work: TaskWork) -> Iterator[tuple[str, list[ModelWork]]]:
    """The settings of a task's trials, those with most steps first, each with its trials."""
    found: dict[str, list[ModelWork]] = {}
    for trial in work.trials:
        found.setdefault(trial.setting, []).append(trial)
    yield from sorted(found.items(), key=lambda item: -sum(t.num_steps for t in item[1]))

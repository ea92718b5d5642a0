"""One stretch of training: its steps, validations, and states to go on from."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.errors import DivergedError
from orchestrator.records import CurvePoint
from orchestrator.resume import Keeper
from orchestrator.steps import Steps
from orchestrator.stretch import Best, Recorder, Stretch, Training
from orchestrator.tasks import TrainingTask
from orchestrator.workers import Workers

logger = logging.getLogger(__name__)

POINTS_PER_STRETCH = 40
"""Curve points without validation: enough to see a shape, few enough for one MLflow batch."""


def train(
    model: nn.Module,
    groups: list[dict[str, Any]],
    task: TrainingTask,
    workers: Workers,
    stretch: Stretch,
    recorder: Recorder,
    keeper: Keeper | None = None,
) -> None:
    """Run one stretch in place, from its start or from where it was stopped.

    Args:
        model: On the workers' device; trained in place.
        groups: Optimizer groups (AdamW); the schedule scales the rate of each but the gates',
            which keep theirs (the gates follow their own anneal).
        task: Batches and losses.
        workers: Who else trains.
        stretch: Length, data position and extras.
        recorder: Where curve points go.
        keeper: Saves the state now and then, and has that of an attempt that was stopped.

    Raises:
        DivergedError: The loss is no longer finite.
    """
    if stretch.num_steps == 0:
        return
    freeze_unused(model, task, workers)
    task.begin_stretch()
    steps = Steps(model, groups, task, workers, stretch, keeper.rate_factor if keeper else 1.0)
    training = Training(
        phase=stretch.name,
        first_step=stretch.first_step,
        model=model,
        optimizer=steps.optimizer,
        best=Best(task),
        task=task,
        recorder=recorder,
    )
    begin = keeper.restore(training) if keeper else 0
    log_every = max(1, stretch.num_steps // POINTS_PER_STRETCH)
    for step in range(begin, stretch.num_steps):
        training.losses.append(steps.take(step))
        done = step + 1
        evaluates = done % stretch.evaluate_every == 0 or done == stretch.num_steps
        # figures of gates wait for the device: no more often than they are shown
        shown = evaluates or done % log_every == 0
        point = _point(stretch, step, steps.rate(step)) if shown else None
        steps.move_gates(done)
        if point is not None:
            point = replace(point, train_loss=_mean(training.losses, workers, step))
            training.losses.clear()
            if evaluates:
                _validate(training, point, task, workers, stretch)
            else:
                recorder.add(point)
        if keeper:
            (keeper.offer if evaluates else keeper.look)(training, done)
    training.best.restore(model)


def _validate(
    training: Training, point: CurvePoint, task: TrainingTask, workers: Workers, stretch: Stretch
) -> None:
    """Evaluate on validation, report it, and remember the weights if they are the best so far."""
    value = evaluate(training.model, task, workers, "validation")[task.metric.name]
    training.best.offer(training.model, value, stretch.keep_best)
    if stretch.preview is not None:
        point = replace(point, extras=point.extras | stretch.preview())
    training.recorder.report(replace(point, validation=_finite(value)))


def evaluate(
    model: nn.Module, task: TrainingTask, workers: Workers, split: str
) -> dict[str, float]:
    """All metrics of a split, every worker doing its share; the same on all of them."""
    training = model.training
    model.eval()
    try:
        shard = task.evaluate_shard(model, split, workers.rank, workers.world)
    finally:
        model.train(training)
    return task.combine(workers.gather(shard), split)


def freeze_unused(model: nn.Module, task: TrainingTask, workers: Workers) -> list[str]:
    """Freeze parameters that the loss does not reach, found by one backward pass.

    DistributedDataParallel stops at the second step if a parameter got no gradient.
    """
    if workers.world == 1:
        return []
    task.begin_stretch()  # this batch has fewer rows than those of the last one
    batch = {k: v.to(workers.device) for k, v in task.batch(0, 0, task.batch_size).items()}
    task.loss(model, batch).backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name in unused:
        # a gated layer that the loss does not reach is among them, and keeps its gates as they are
        model.get_parameter(name).requires_grad_(False)
    model.zero_grad(set_to_none=True)
    if unused:
        logger.info("not reached by the loss, kept as they are: %s", ", ".join(unused))
    return unused


def _point(stretch: Stretch, step: int, rate: float) -> CurvePoint:
    """The curve point of a step, before the multipliers move on."""
    pruner, phase = stretch.pruner, stretch.phase
    extras: dict[str, Any] = {}
    if pruner is not None:
        phase = "anneal" if pruner.target > pruner.method.density else "hold"
        extras = {
            "expected_density": float(pruner.expected_density().detach()),
            "target_density": pruner.target,
            **pruner.control.figures(),
        }
    return CurvePoint(
        step=stretch.first_step + step + 1, phase=phase, seconds=0, learning_rate=rate, **extras
    )


def _mean(losses: list[Tensor], workers: Workers, step: int) -> float:
    """Mean of the collected losses over steps and workers; stops a diverged run everywhere."""
    values = workers.gather(float(torch.stack(losses).mean()))
    mean = sum(values) / len(values)
    if not math.isfinite(mean):
        raise DivergedError(f"the training loss is {mean} near step {step + 1}: training diverged")
    return mean


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""What one stretch of training does, and what it collects on its way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.pruner import Pruner
from lowrank.schedule import warmup_cosine
from orchestrator.records import CurvePoint
from orchestrator.tasks import Distillation, TrainingTask
from orchestrator.workers import Workers

REWARM_STEPS = 10
"""Steps over which a stretch within a common schedule comes up to its rate: Adam's second moment,
with a decay of 0.98, has then seen a fifth of its window."""


@dataclass(kw_only=True)
class Recorder:
    """Collects the curve, passes each point on, and reports progress: at validations, and between
    them when it is told to."""

    workers: Workers
    total_steps: int
    sink: Callable[[list[CurvePoint]], None] | None = None
    """Receives new points in batches, on rank 0: the tracking run's writer."""
    curve: list[CurvePoint] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    before: float = 0.0
    """Seconds of the training that this one goes on from."""
    realized_density: float | None = None
    """As the projection left it, once there was one: part of the reports."""
    _unsent: list[CurvePoint] = field(default_factory=list)
    _reported: int = 0
    """Last step that was."""

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started + self.before

    def add(self, point: CurvePoint) -> CurvePoint:
        point = replace(point, seconds=round(self.seconds, 3))
        self.curve.append(point)
        self._unsent.append(point)
        return point

    def report(self, point: CurvePoint) -> None:
        """A point that everyone hears of. Called at the same steps on all workers."""
        self._report(self.add(point))

    def tell(self) -> None:
        """Of the last point, between two validations, if nobody has heard of it. Called at the same
        steps on all workers."""
        if self.curve and self.curve[-1].step != self._reported:
            self._report(self.curve[-1], between=True)

    def _report(self, point: CurvePoint, **more: Any) -> None:
        self.flush()
        self._reported = point.step
        progress = {k: getattr(point, k) for k in point.__dataclass_fields__}
        progress["realized_density"] = self.realized_density
        self.workers.report(
            {k: v for k, v in progress.items() if v not in (None, {})}
            | {"total_steps": self.total_steps}
            | more
        )

    def forget(self) -> None:
        """The curve begins again; what was passed on stays passed on."""
        self.flush()
        self.curve.clear()

    def flush(self) -> None:
        if self.sink is not None and self.workers.rank == 0 and self._unsent:
            self.sink(self._unsent)
        self._unsent = []


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What one stretch of training does."""

    first_step: int
    """Global step at which it begins; decides its data."""
    num_steps: int
    max_grad_norm: float
    evaluate_every: int
    warmup_fraction: float = 0.05
    schedule_steps: int | None = None
    """Steps of the job over which the learning rate falls, this stretch being a part of them; by
    default the stretch has a schedule of its own."""
    schedule_from: int = 0
    """Global step at which that schedule begins."""
    decays: bool = True
    """Whether the rate falls after its warm-up; else it stays, for others to branch off."""
    precision: str = "float32"
    keep_best: bool = False
    """End with the weights of the best validation instead of the last."""
    distillation: Distillation | None = None
    pruner: Pruner | None = None
    phase: str = "dense"
    part: str = ""
    """Tells gated stretches of one job apart."""
    preview: Callable[[], dict[str, float]] | None = None
    """Further figures of each validation, finite."""

    @property
    def name(self) -> str:
        """Tells a job's stretches apart."""
        return self.phase if self.pruner is None else f"gated{self.part}"

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rates at a step of this stretch."""
        if self.schedule_steps is None:
            return warmup_cosine(step, self.num_steps, self.warmup_fraction)
        done = self.first_step + step - self.schedule_from
        factor = warmup_cosine(done, self.schedule_steps, self.warmup_fraction)
        if not self.decays:
            warmup = max(1, math.ceil(self.warmup_fraction * self.schedule_steps))
            factor = min(1.0, (done + 1) / warmup)
        # a new optimizer has yet to learn how large gradients are
        return factor * min(1.0, (step + 1) / REWARM_STEPS)


class Best:
    """The weights of the best validation so far, in host memory."""

    def __init__(self, task: TrainingTask) -> None:
        self._sign = -1.0 if task.metric.higher_is_better else 1.0
        self._value = math.inf
        self._state: dict[str, Tensor] | None = None
        self._is_last = False

    def offer(self, model: nn.Module, value: float, keep: bool) -> None:
        self._is_last = keep and self._sign * value < self._value
        if self._is_last:
            self._value = self._sign * value
            self._state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        if self._state is not None and not self._is_last:
            model.load_state_dict(self._state)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, and what is known of them; JSON."""
        value = self._value if math.isfinite(self._value) else None
        return self._state or {}, {"value": value, "is_last": self._is_last}

    def load(self, weights: dict[str, Tensor], known: dict[str, Any]) -> None:
        """Go on from another's `state`."""
        self._state = weights or None
        self._value = math.inf if known["value"] is None else known["value"]
        self._is_last = known["is_last"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The parts of a stretch that change from step to step."""

    phase: str
    first_step: int
    """Of the stretch, within its job."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    best: Best
    task: TrainingTask
    recorder: Recorder
    losses: list[Tensor] = field(default_factory=list)
    """Since the last point of the curve, this worker's."""

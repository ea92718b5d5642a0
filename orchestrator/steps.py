"""The steps of one stretch: forward, backward, clipping, optimizer, gates; and what they hold on to
when components leave the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank.pruner import Pruner
from lowrank.shrinking import TIMES
from orchestrator.stretch import Stretch
from orchestrator.tasks import TrainingTask
from orchestrator.workers import Workers


class Steps:
    """Takes optimizer steps of a stretch.

    Args:
        model: On the workers' device; trained in place.
        groups: Optimizer groups (AdamW); the stretch's schedule scales the rate of each but the
            gates', which keep theirs (the gates follow their own anneal).
        task: Batches and losses.
        workers: Who else trains.
        stretch: Length, data position and extras.
        rate_factor: On the rates of the weights, besides the schedule's.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        task: TrainingTask,
        workers: Workers,
        stretch: Stretch,
        rate_factor: float = 1.0,
    ) -> None:
        self._rate_factor = rate_factor
        self._model, self._task, self._workers, self._stretch = model, task, workers, stretch
        self._share = share_of_mean(task.batch_size, workers.rank, workers.world)
        self._hold()
        # one kernel for all parameters: small models spend their time on launching kernels
        fused = workers.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._shrink_every = max(1, stretch.num_steps // TIMES)

    def rate(self, step: int) -> float:
        """Learning rate of the weights at a step, counted from 0."""
        return float(self._base_rates[0] * self._factor(step))

    def take(self, step: int) -> Tensor:
        """One step of the weights; the loss of the task alone, a scalar on the device."""
        self._workers.beat()
        self._set_rates(step)
        stretch, device = self._stretch, self._workers.device
        batch = self._task.batch(stretch.first_step + step, self._workers.rank, self._workers.world)
        batch = {name: value.to(device) for name, value in batch.items()}
        self._wrapped.train()
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=stretch.precision == "bfloat16"
        ):
            loss = self._task.loss(self._wrapped, batch, stretch.distillation)
        if self._share != 1:
            loss = self._share * loss
        total = loss if stretch.pruner is None else loss + stretch.pruner.penalty()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, stretch.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def move_gates(self, done: int) -> None:
        """The gates' part of a step; now and then components that are closed for good leave.

        Args:
            done: Steps of the stretch that were taken.
        """
        pruner = self._stretch.pruner
        if pruner is None:
            return
        pruner.step()
        if done % self._shrink_every == 0 and pruner.shrink(self.optimizer):
            # the wrapper holds the parameters that were: it has to go before there is another
            del self._wrapped
            self._hold()

    def _hold(self) -> None:
        """Gradients are averaged in buckets, and clipped, by parameter: those of now."""
        self._wrapped = self._workers.wrap(self._model)
        self._gates = _gate_ids(self._stretch.pruner)
        self._weights = [
            p for p in self._model.parameters() if p.requires_grad and id(p) not in self._gates
        ]

    def _factor(self, step: int) -> float:
        return self._rate_factor * self._stretch.rate_factor(step)

    def _set_rates(self, step: int) -> None:
        factor = self._factor(step)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            is_gates = bool(self._gates) and id(group["params"][0]) in self._gates
            group["lr"] = rate if is_gates else rate * factor


def share_of_mean(batch: int, rank: int, world: int) -> float:
    """Factor on a worker's mean loss with which the mean over workers is the mean over the batch.

    Workers take rows rank, rank + world, ...: if they do not come out even, some have one more.

    Args:
        batch: Rows over all workers.
        rank: Of the worker.
        world: Number of workers.
    """
    return len(range(rank, batch, world)) * world / batch


def _gate_ids(pruner: Pruner | None) -> set[int]:
    if pruner is None:
        return set()
    control = pruner.control
    return {id(gate) for gate in (*control.gate_parameters(), *control.own_parameters)}

"""Causal language modelling with models that need only a part of their vocabulary for the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank.distillation import Distillation, hidden_loss
from orchestrator.tasks.base import Batch
from orchestrator.tasks.language_modelling import LanguageModellingTask


class ClusteredLanguageModellingTask(LanguageModellingTask):
    """The same windows and metrics; the model computes the loss of its adaptive softmax, and of the
    softmax no more than that needs, of the teacher's neither."""

    def loss(
        self, model: nn.Module, batch: Batch, distillation: Distillation | None = None
    ) -> Tensor:
        inputs, targets = batch["input_ids"], batch["labels"]
        if distillation is None:
            plain: Tensor = model(input_ids=inputs, targets=targets).loss
            return plain
        options = {"output_hidden_states": True} if distillation.hidden > 0 else {}
        seen, soft = _seen_by(distillation.teacher, inputs, targets, options)
        output = model(
            input_ids=inputs,
            targets=targets,
            teacher=soft,
            teacher_weight=distillation.weight,
            temperature=distillation.temperature,
            **options,
        )
        loss: Tensor = output.loss
        if distillation.hidden > 0:
            states, wanted = output.hidden_states[1:], seen.hidden_states[1:]
            loss = loss + distillation.hidden * hidden_loss(states, wanted)
        return loss

    def _nats(self, model: nn.Module, batch: Batch) -> float:
        device = next(model.parameters()).device
        inputs, targets = batch["input_ids"].to(device), batch["labels"].to(device)
        with torch.inference_mode():
            mean = model(input_ids=inputs, targets=targets).loss
        return float(mean.double()) * targets.numel()


@torch.no_grad()
def _seen_by(
    teacher: Any, inputs: Tensor, targets: Tensor, options: dict[str, Any]
) -> tuple[Any, list[Tensor]]:
    """The output of a teacher's blocks, and what the targets need of its softmax."""
    seen = teacher.model(input_ids=inputs, **options)
    needed = teacher.softmax.needed(seen.last_hidden_state.flatten(0, 1), targets.flatten())
    return seen, [logits for logits, _ in needed]

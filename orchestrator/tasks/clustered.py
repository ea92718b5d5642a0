"""Causal language modelling with models that need only a part of their vocabulary for the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank.distillation import Distillation
from orchestrator.tasks.base import Batch
from orchestrator.tasks.language_modelling import LanguageModellingTask


class ClusteredLanguageModellingTask(LanguageModellingTask):
    """The same windows and metrics; the model computes the loss of its adaptive softmax.

    A teacher's predictions are over the whole vocabulary, so with distillation all of it is
    computed.
    """

    def loss(
        self, model: nn.Module, batch: Batch, distillation: Distillation | None = None
    ) -> Tensor:
        if distillation is not None:
            return super().loss(model, batch, distillation)
        loss: Tensor = model(input_ids=batch["input_ids"], targets=batch["labels"]).loss
        return loss

    def _nats(self, model: nn.Module, batch: Batch) -> float:
        device = next(model.parameters()).device
        inputs, targets = batch["input_ids"].to(device), batch["labels"].to(device)
        with torch.inference_mode():
            mean = model(input_ids=inputs, targets=targets).loss
        return float(mean.double()) * targets.numel()

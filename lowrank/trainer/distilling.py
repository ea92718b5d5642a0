"""A Trainer whose model also learns from the dense one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from lowrank.distillation import Distillation, distilled

IGNORED = -100
"""Label of positions that transformers' losses leave out."""


class DistillingTrainer(Trainer):
    """`transformers.Trainer` with (1 - w) loss + w loss of the teacher's predictions + v hidden
    states. Evaluation is without the teacher.

    Args:
        args: To Trainer, as are the keyword arguments that are not named here.
        teacher: The dense model, a copy made before the pruner was; its inputs are the student's.
        distill: w in [0, 1], by default a half, as in `Distillation`.
        temperature: Of the softmaxes of teacher and student, > 0.
        hidden: v >= 0.
    """

    def __init__(
        self,
        *args: Any,
        teacher: nn.Module,
        distill: float = 0.5,
        temperature: float = 1.0,
        hidden: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.distillation = Distillation(
            teacher=teacher, weight=distill, temperature=temperature, hidden=hidden
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As Trainer's; its own loss is the part of the labels."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.distillation.hidden:
            inputs = inputs | {"output_hidden_states": True}
        # Trainer may take the labels out, and some models make their inputs from them
        asked = dict(inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad():
            wanted = self.distillation.teacher(**asked)
        soft = distilled(self.distillation, outputs, wanted, self._counted(asked))
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            # the labels' part is a share of the whole step's, and is not divided any more
            soft = soft / self.current_gradient_accumulation_steps
        loss = (1 - self.distillation.weight) * loss + soft
        return (loss, outputs) if return_outputs else loss

    def _counted(self, inputs: dict[str, Any]) -> Tensor | None:
        """The positions whose predictions count, [batch, seq]; None for all."""
        config: Any = self.distillation.teacher.config
        if config.is_encoder_decoder:
            labels = inputs.get("labels")
            return None if labels is None else labels != IGNORED
        return inputs.get("attention_mask")

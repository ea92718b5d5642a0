"""What a model learns from the dense one, besides the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.errors import LowRankError


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A teacher and how much it counts."""

    teacher: nn.Module
    weight: float = 0.5
    """Of the teacher's predictions against the labels, in [0, 1]."""
    temperature: float = 1.0
    hidden: float = 0.0
    """Weight of the difference of hidden states, which is added to the loss."""


def distilled(
    distillation: Distillation, output: Any, wanted: Any, mask: Tensor | None = None
) -> Tensor:
    """w loss of the teacher's predictions + v difference of hidden states: what is added to
    (1 - w) loss of the labels.

    Args:
        distillation: w and v.
        output: Of the student: `.logits`, [*predictions, outputs], and `.hidden_states` if v > 0.
        wanted: Of the teacher, likewise. A single output per prediction is a score, and is compared
            by squared error; several are classes.
        mask: Positions that are not padding, [batch, seq]; all by default. Where predictions are
            per position, it counts for these too.

    Raises:
        LowRankError: v > 0 and there are no hidden states.
    """
    logits, target = output.logits.float(), wanted.logits.float()
    if mask is not None and mask.shape == logits.shape[:-1]:
        logits, target = logits[mask.bool()], target[mask.bool()]
    else:
        logits, target = logits.flatten(0, -2), target.flatten(0, -2)
    if logits.shape[-1] == 1:
        loss = F.mse_loss(logits, target)
    else:
        loss = soft_loss(logits, target, distillation.temperature)
    loss = distillation.weight * loss
    if distillation.hidden > 0:
        if getattr(output, "hidden_states", None) is None:
            raise LowRankError(f"{type(distillation.teacher).__name__} has no hidden states")
        # the first are the embeddings, before any layer
        states, targets = output.hidden_states[1:], wanted.hidden_states[1:]
        loss = loss + distillation.hidden * hidden_loss(states, targets, mask)
    return loss


def soft_loss(
    logits: Tensor, target: Tensor, temperature: float, reduction: str = "batchmean"
) -> Tensor:
    """tau^2 KL(teacher || student), mean over predictions (Hinton, Vinyals, Dean 2015, arXiv
    1503.02531, section 2).

    Args:
        logits: Of the student, [predictions, classes].
        target: Of the teacher, [predictions, classes].
        temperature: tau > 0.
        reduction: `sum` over predictions, of which there may be none, instead of their mean.
    """
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, -1),
        F.log_softmax(target / temperature, -1),
        reduction=reduction,
        log_target=True,
    )
    return temperature**2 * divergence


def hidden_loss(
    states: Sequence[Tensor], targets: Sequence[Tensor], mask: Tensor | None = None
) -> Tensor:
    """Mean over layers of |h - h_t|^2 / |h_t|^2 over the positions that count.

    Low-rank factors keep every width, so layer is compared with layer, without a projection.
    Relative, so that one weight serves layers of any scale.

    Args:
        states: Of the student, one per layer, [batch, seq, hidden].
        targets: Of the teacher, likewise.
        mask: Positions that are not padding, [batch, seq]; all by default.
    """
    losses = []
    for state, target in zip(states, targets, strict=True):
        state, target = state.float(), target.float()
        error, size = (state - target).square().sum(-1), target.square().sum(-1)
        if mask is not None:
            error, size = error * mask, size * mask
        losses.append(error.sum() / size.sum().clamp(min=torch.finfo(torch.float32).tiny))
    return torch.stack(losses).mean()

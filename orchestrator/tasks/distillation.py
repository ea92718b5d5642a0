"""What a model learns from the dense one, besides the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A teacher and how much it counts."""

    teacher: nn.Module
    weight: float = 0.5
    """Of the teacher's predictions against the labels, in [0, 1]."""
    temperature: float = 1.0
    hidden: float = 0.0
    """Weight of the difference of hidden states, which is added to the loss."""


def soft_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(teacher || student), mean over predictions (Hinton, Vinyals, Dean 2015, arXiv
    1503.02531, section 2).

    Args:
        logits: Of the student, [predictions, classes].
        target: Of the teacher, [predictions, classes].
        temperature: tau > 0.
    """
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, -1),
        F.log_softmax(target / temperature, -1),
        reduction="batchmean",
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

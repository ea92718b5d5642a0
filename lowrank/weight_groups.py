"""Which weights an optimizer decays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def weight_groups(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, vectors (biases, gains of norms) do not.

    Args:
        parameters: Frozen ones are left out.
        learning_rate: Of all.
        weight_decay: Of the matrices, in [0, 1).

    Returns:
        The matrices, then the vectors; either may have no parameters.
    """
    trained = [p for p in parameters if p.requires_grad]
    return [
        {
            "params": [p for p in trained if p.ndim > 1],
            "lr": learning_rate,
            "weight_decay": weight_decay,
        },
        {"params": [p for p in trained if p.ndim <= 1], "lr": learning_rate, "weight_decay": 0.0},
    ]

"""Gates without a distribution: a plain trained vector and the mask of what is left of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank.gate import Gate


class MagnitudeGate(Gate):
    """z = mask * a: the diagonal of FLOP-AGP (Wang et al. 2020, arXiv 1910.04732, section 4.2).

    The mask is set from outside, by a schedule; a masked entry gets no gradient and stays.
    """

    PER_UNIT = ("mask",)

    mask: Tensor

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.ones(num_gates))
        self.register_buffer("mask", torch.ones(num_gates))

    def forward(self) -> Tensor:
        return self.parameter * self.mask

    def value(self) -> Tensor:
        return (self.parameter * self.mask).detach().double()

    def kept(self) -> Tensor:
        return self.mask

    def set_mask(self, keep: Tensor) -> None:
        """Keep the units where `keep`, bool [num_gates], is set."""
        self.mask.copy_(keep)


def cubic_density(progress: float, density: float) -> float:
    """Scheduled density, from 1 to `density`: v = v_f + (1 - v_f) (1 - p)^3.

    Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878, eq. 1), in kept fractions.
    """
    progress = min(max(progress, 0.0), 1.0)
    return density + (1 - density) * (1 - progress) ** 3

"""Deterministic gates that meet the budget at every step.

    s_k = sigmoid((a_k - tau) / T),   tau such that  sum_k c_k s_k = budget

Among all s in [0, 1] that spend exactly the budget, these maximize  sum_k c_k (a_k s_k + T H(s_k)),
H the entropy: a is worth per cost, and the gates are a projection of it onto the budget that can be
differentiated. tau is solved for, not ascended to; there is nothing to wind up and nothing to miss.
T falls until gates are open or shut, and the final projection then cuts little that is in use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.density import Cost
from lowrank.gate import Gate

TOLERANCE = 1e-15
"""Of tau, relative to the range of the scores: a cold gate is steep, with a slope of 1 / 4T."""
RELATIVE = 4 * float(np.finfo(np.float64).eps)
"""The least that the root finder takes."""
REACH = 40.0
"""sigmoid(-40) is 4e-18: beyond this many T from every score all gates are open, or all shut."""


class ThresholdGate(Gate):
    """One score per component; the threshold and the temperature are set from outside.

    Args:
        num_gates: Components, most important first.
    """

    def __init__(self, num_gates: int) -> None:
        super().__init__()
        # the k-th of r components comes at the same score in every layer: without any training
        # of the scores all layers lose the same fraction of their components
        places = (torch.arange(num_gates) + 0.5) / num_gates
        self.parameter = nn.Parameter(1.0 - places)
        self.limits: Tensor
        self.register_buffer("limits", None, persistent=False)
        self.place(-REACH, 1.0)

    @property
    def threshold(self) -> float:
        return self._threshold

    @property
    def temperature(self) -> float:
        return self._temperature

    def place(self, threshold: float, temperature: float, limits: Tensor | None = None) -> None:
        """Set tau and T.

        Args:
            threshold: tau.
            temperature: T > 0.
            limits: `limits_of` both, if gates share it, on the parameter's device.
        """
        self._threshold, self._temperature = threshold, temperature
        if limits is None:
            limits = limits_of(threshold, temperature, self.parameter.device)
        self.limits = limits

    def forward(self) -> Tensor:
        # a tensor, for compiled code that has numbers in it is compiled again for other numbers
        high, low, temperature = self.limits.unbind()
        return torch.sigmoid((self.parameter - high - low) / temperature)

    def value(self) -> Tensor:
        score = self.parameter.detach().double()
        return torch.sigmoid((score - self.threshold) / self.temperature)

    def kept(self) -> Tensor:
        return self()


def limits_of(threshold: float, temperature: float, device: torch.device) -> Tensor:
    """What a gate subtracts and divides by: tau in two parts, or a cold gate near it would feel its
    rounding to float32 (6e-8 / T), and T. [3], float32."""
    high = float(np.float32(threshold))
    return torch.tensor([high, threshold - high, temperature], device=device)


def solve_threshold(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Cost],
    allowed: float,
    temperature: float,
) -> float:
    """tau for which the gates spend what is allowed.

    Args:
        scores: a per layer, [num_gates] each.
        costs: What each layer's expected number of components costs.
        allowed: Budget, in the unit of the costs.
        temperature: T > 0.

    Returns:
        tau; NaN if a score is not finite.
    """
    # here, so that whoever only runs compacted models needs no SciPy
    from scipy.optimize import brentq
    from scipy.special import expit

    # one transfer from the device, whatever the number of layers
    score = torch.cat([each.detach() for each in scores.values()]).double().cpu().numpy()
    if not np.isfinite(score).all():
        return math.nan  # training diverged, and the loss will say so
    layer = np.repeat(np.arange(len(scores)), [len(each) for each in scores.values()])
    charged = [costs[name] for name in scores]

    def excess(threshold: float) -> float:
        open_parts = expit((score - threshold) / temperature)
        kept = np.bincount(layer, open_parts, minlength=len(charged)).tolist()
        return sum(c.expected(count) for c, count in zip(charged, kept, strict=True)) - allowed

    low = float(score.min()) - REACH * temperature
    high = float(score.max()) + REACH * temperature
    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return high
    return float(brentq(excess, low, high, xtol=TOLERANCE * (high - low), rtol=RELATIVE))


def tangent_gradients(gradient: Tensor, slope: Tensor, unit_cost: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the scores along the budget, and the price of a unit of it.

    Backward gives h_k = s'_k dL/ds_k for a fixed tau. When a_k rises, tau rises with it, by
    c_k s'_k / sum_j c_j s'_j, and all gates shut a little:

        dL/da_k = h_k - c_k s'_k lambda,    lambda = sum_j h_j / sum_j c_j s'_j

    A score therefore rises only if its component brings more per cost than the average of those
    that are neither open nor shut. -lambda is the multiplier of the budget: loss per unit of cost.

    Args:
        gradient: h of the components of all layers, [num_gates].
        slope: s' of each, in units of the score.
        unit_cost: c of each.

    Returns:
        dL/da, [num_gates], and -lambda, a scalar; 0 where no gate is between open and shut.
        Nothing waits for the device.
    """
    weight = unit_cost * slope
    total = weight.sum()
    price = torch.where(total > 0, gradient.sum() / total, 0.0)
    return gradient - price * weight, -price

"""Deterministic gates that meet the budget at every step.

    s_k = sigmoid((a_k - tau) / T),   tau such that  sum_k c_k s_k = budget

Among all s in [0, 1] that spend exactly the budget, these maximize  sum_k c_k (a_k s_k + T H(s_k)),
H the entropy: a is worth per cost, and the gates are a projection of it onto the budget that can be
differentiated. tau is solved for, not ascended to; there is nothing to wind up and nothing to miss.
T falls until gates are open or shut, and the final projection then cuts little that is in use.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lowrank.density import Cost
from lowrank.gate import Gate

BISECTIONS = 60
"""Halvings of the interval of tau: to the rounding of float64."""
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
        self.threshold, self.temperature = -REACH, 1.0

    def forward(self) -> Tensor:
        return torch.sigmoid((self.parameter - self.threshold) / self.temperature)

    def value(self) -> Tensor:
        score = self.parameter.detach().double()
        return torch.sigmoid((score - self.threshold) / self.temperature)

    def kept(self) -> Tensor:
        return self()


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
    """
    names = list(scores)
    score = torch.cat([scores[name].detach().double().cpu() for name in names])
    sizes = [len(scores[name]) for name in names]

    def spent(threshold: float) -> float:
        kept = torch.sigmoid((score - threshold) / temperature).split(sizes)
        counts = torch.stack([layer.sum() for layer in kept]).tolist()
        return sum(costs[name].expected(count) for name, count in zip(names, counts, strict=True))

    low = float(score.min()) - REACH * temperature
    high = float(score.max()) + REACH * temperature
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > allowed else (low, middle)
    return (low + high) / 2


def tangent_gradients(
    gradients: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor],
    unit_costs: Mapping[str, float],
) -> tuple[dict[str, Tensor], float]:
    """Gradients of the scores along the budget, and the price of a unit of it.

    Backward gives h_k = s'_k dL/ds_k for a fixed tau. When a_k rises, tau rises with it, by
    c_k s'_k / sum_j c_j s'_j, and all gates shut a little:

        dL/da_k = h_k - c_k s'_k lambda,    lambda = sum_j h_j / sum_j c_j s'_j

    A score therefore rises only if its component brings more per cost than the average of those
    that are neither open nor shut. -lambda is the multiplier of the budget: loss per unit of cost.

    Args:
        gradients: h per layer, [num_gates] each.
        slopes: s' per layer, in units of the score.
        unit_costs: c of each layer's components.
    """
    total = sum(float(gradient.sum()) for gradient in gradients.values())
    weight = sum(float(slope.sum()) * unit_costs[name] for name, slope in slopes.items())
    price = total / weight if weight > 0 else 0.0
    along = {n: g - price * unit_costs[n] * slopes[n] for n, g in gradients.items()}
    return along, -price

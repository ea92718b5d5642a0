"""Augmented Lagrangian that holds the expected density to a target.

    max over lambda, min over theta and log_alpha of
    E[L] + lambda_1 (s - t) + lambda_2 (s - t)^2        (Wang et al. 2020, arXiv 1910.04732, eq. 9)

with s the expected density and t the scheduled target. One pair of multipliers for the whole
model, so that layers compete for one budget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank.errors import LowRankError


class AugmentedLagrangian:
    """The two multipliers and their gradient ascent, in float32 on the CPU.

    The ascent is Adam's, so that the learning rate is a step size in units of lambda whatever
    the violation; lambda_1 is signed, lambda_2 cannot fall since its gradient is a square.
    """

    def __init__(self, learning_rate: float) -> None:
        if not learning_rate > 0:
            raise LowRankError(f"penalty learning rate > 0 must hold, got {learning_rate}")
        self._lambda = torch.zeros(2, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._lambda], lr=learning_rate, maximize=True)

    @property
    def lambda_linear(self) -> float:
        return float(self._lambda.detach()[0])

    @property
    def lambda_quadratic(self) -> float:
        return float(self._lambda.detach()[1])

    def penalty(self, expected_density: Tensor, target: float) -> Tensor:
        """lambda_1 (s - t) + lambda_2 (s - t)^2, scalar, differentiable in s only."""
        violation = expected_density.float() - target
        return self.lambda_linear * violation + self.lambda_quadratic * violation.square()

    def price(self, expected_density: float, target: float) -> float:
        """Gradient of the penalty in the density; above 0 it shuts gates."""
        return self.lambda_linear + 2 * self.lambda_quadratic * (expected_density - target)

    def ascend(self, expected_density: float, target: float) -> None:
        """One ascent step of both multipliers."""
        violation = expected_density - target
        self._lambda.grad = torch.tensor([violation, violation * violation])
        self._optimizer.step()
        with torch.no_grad():
            # exact arithmetic never takes lambda_2 below zero, rounding could
            self._lambda[1].clamp_(min=0)

    def state_dict(self) -> dict[str, Tensor]:
        """Multipliers and both Adam moments, as plain tensors (safetensors can hold them)."""
        state = self._optimizer.state.get(self._lambda, {})
        zero = torch.zeros(2)
        return {
            "lambda": self._lambda.detach().clone(),
            "exp_avg": state.get("exp_avg", zero).clone(),
            "exp_avg_sq": state.get("exp_avg_sq", zero).clone(),
            "step": torch.as_tensor(state.get("step", 0.0)).float().clone().reshape(()),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self._lambda.copy_(state["lambda"])
        self._optimizer.state[self._lambda] = {
            "step": state["step"].clone(),
            "exp_avg": state["exp_avg"].clone(),
            "exp_avg_sq": state["exp_avg_sq"].clone(),
        }

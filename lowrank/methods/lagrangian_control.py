"""Gates held to a budget by an augmented Lagrangian; common to all gated methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.currency import Currency
from lowrank.density import expected_density, realized_density
from lowrank.errors import LowRankError
from lowrank.gate import Gate
from lowrank.lagrangian import AugmentedLagrangian
from lowrank.methods.base import Control, Method, check_finite
from lowrank.projection import Projection
from lowrank.pruned import GatedFactors
from lowrank.schedule import linear_anneal
from lowrank.sliced import GatedInputLinear

GatedLayer = GatedFactors | GatedInputLinear

CLOSED = 1e-3
"""Least chance of a gate to open once more; with less its component may leave."""


@dataclass(frozen=True, kw_only=True)
class GatedMethod(Method):
    """Fields of every method with gates and multipliers."""

    gated_steps: int = 260
    anneal_fraction: float = 0.75
    """Part of the gated steps over which the target falls from 1 to `density`, linearly; then it
    holds."""
    penalty_lr: float = 0.2
    """Ascent rate of the multipliers."""
    gate_lr: float | None = None
    """Rate of the gates' parameters; by default the method's own."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.gated_steps < 1:
            raise LowRankError(f"gated_steps >= 1 must hold, got {self.gated_steps}")
        if not 0 <= self.anneal_fraction <= 1:
            raise LowRankError(f"0 <= anneal_fraction <= 1 must hold, got {self.anneal_fraction}")
        if self.gate_lr is not None and not self.gate_lr > 0:
            raise LowRankError(f"gate_lr > 0 must hold, got {self.gate_lr}")

    @property
    def anneal_steps(self) -> int:
        return round(self.anneal_fraction * self.gated_steps)


class LagrangianControl(Control[GatedLayer]):
    """Multipliers ascend, gates follow.

    Args:
        layers: With gates.
        method: Rates and schedule.
        currency: Of the budget.
        lagrangian: Fresh multipliers.
        gate_lr: Resolved rate of the gates.
        exact: Project onto the budget; otherwise round each layer's expected size.
    """

    def __init__(
        self,
        layers: dict[str, GatedLayer],
        method: GatedMethod,
        currency: Currency,
        lagrangian: AugmentedLagrangian,
        gate_lr: float,
        exact: bool = True,
    ) -> None:
        super().__init__(layers, method, currency)
        self.gated_method, self.lagrangian, self._gate_lr = method, lagrangian, gate_lr
        self._exact = exact
        every = {name: len(layer.gate.parameter) for name, layer in layers.items()}
        self._start_density = realized_density(every, self.costs)

    @property
    def gates(self) -> dict[str, Gate]:
        return {name: layer.gate for name, layer in self.layers.items()}

    def gate_parameters(self) -> list[nn.Parameter]:
        return [gate.parameter for gate in self.gates.values()]

    @property
    def gate_lr(self) -> float:
        return self._gate_lr

    @property
    def target(self) -> float:
        method = self.gated_method
        start = max(self._start_density, method.density)
        return linear_anneal(self.step_index, start, method.density, method.anneal_steps)

    def expected_density(self) -> Tensor:
        gates = self.gates
        device = next(iter(gates.values())).parameter.device
        # the penalty stays float32 when the caller's autocast region includes it
        with torch.autocast(device.type, enabled=False):
            return expected_density({name: g.kept() for name, g in gates.items()}, self.costs)

    def penalty(self) -> Tensor:
        return self.lagrangian.penalty(self.expected_density(), self.target)

    def end_step(self) -> None:
        with torch.no_grad():
            self.lagrangian.ascend(float(self.expected_density()), self.target)
        super().end_step()

    def begin_step(self, generator: torch.Generator) -> None:
        for gate in self.gates.values():
            gate.begin_step(self.progress, generator)

    def scores(self) -> dict[str, Tensor]:
        scores = {n: g.parameter.detach().float().cpu() for n, g in self.gates.items()}
        check_finite(scores)
        return scores

    def project(self) -> Projection:
        if self._exact:
            return super().project()
        scores = self.scores()
        keep = {}
        for name, gate in self.gates.items():
            count = max(self.floors[name], round(float(gate.kept().detach().sum())))
            best = torch.argsort(scores[name], descending=True, stable=True)[:count]
            keep[name] = torch.zeros(len(scores[name]), dtype=torch.bool)
            keep[name][best] = True
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        return Projection(keep, realized_density(counts, self.costs))

    def dead(self) -> dict[str, Tensor]:
        """Gates that will hardly open in any step to come, unless the multipliers open them."""
        if self.lagrangian.price(float(self.expected_density().detach()), self.target) <= 0:
            return {}
        left = max(1, self.method.gated_steps - self.step_index)
        names = [name for name, layer in self.layers.items() if isinstance(layer, GatedFactors)]
        if not names:
            return {}
        with torch.no_grad():
            every = torch.cat([self.gates[name].kept() for name in names]).cpu()
        sizes = [len(self.gates[name].parameter) for name in names]
        return dict(zip(names, (every < CLOSED / left).split(sizes), strict=True))

    def undecided(self) -> float:
        """Part of the gates that are neither open nor shut: 0.05 < kept < 0.95."""
        with torch.no_grad():
            kept = torch.cat([gate.kept() for gate in self.gates.values()])
        return float(((kept > 0.05) & (kept < 0.95)).float().mean())

    def figures(self) -> dict[str, float]:
        return {
            "lambda_linear": self.lagrangian.lambda_linear,
            "lambda_quadratic": self.lagrangian.lambda_quadratic,
            "undecided": self.undecided(),
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {f"lagrangian.{k}": v for k, v in self.lagrangian.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        prefix = "lagrangian."
        self.lagrangian.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )

"""The default method: ranks found by deterministic gates that meet the budget at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowrank.alignment import rounded_up
from lowrank.currency import Currency
from lowrank.density import LayerShape, realized_density
from lowrank.errors import LowRankError
from lowrank.methods.base import (
    Control,
    Method,
    check_choice,
    check_finite,
    check_fraction,
    fraction_floors,
)
from lowrank.methods.course import Course
from lowrank.methods.start import Start, StartKind, gated_start
from lowrank.prunable import Prunable
from lowrank.pruned import GatedFactors
from lowrank.shrinking import Swap, follow
from lowrank.threshold import ThresholdGate, limits_of, solve_threshold, tangent_gradients

CLOSED = 1e-9
"""A gate below it adds less than a float32 resolves, and its score, whose gradient is as small
against the 1e-8 in Adam's denominator, does not move any more."""
SCORE_TRAVEL = 2.0
"""Default rate of scores times gated steps: a score that always rises could cross the range
twice."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Method):
    """Threshold gates from a truncated covariance start, on a cubic schedule of the density.

    Nothing is sampled: training, evaluation and the projected model are one function. Scores start
    so that untrained gates would prune all layers alike; training moves them apart where a layer's
    components bring more loss per cost than others.
    """

    gated_steps: int = 260
    anneal_fraction: float = 0.75
    """Part of the gated steps over which the density falls to its target; in the rest gates
    harden."""
    gate_lr: float | None = None
    """Rate of the scores; default 2 / gated steps. 0 leaves the ranks uniform."""
    floor_fraction: float = 0.5
    """Rank floor of each layer, of the rank that a uniform choice would give it."""
    start: StartKind = "covariance"
    start_excess: float = 2.0
    """Rank at the start, of the rank that a uniform choice would give the layer; no more than the
    break-even rank. What is cut at once is cheap to recover and makes every later step faster."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.gated_steps < 1:
            raise LowRankError(f"gated_steps >= 1 must hold, got {self.gated_steps}")
        if not 0 <= self.anneal_fraction < 1:
            # without steps in which gates harden the projection would cut what is in use
            raise LowRankError(f"0 <= anneal_fraction < 1 must hold, got {self.anneal_fraction}")
        if self.gate_lr is not None and not self.gate_lr >= 0:
            raise LowRankError(f"gate_lr >= 0 must hold, got {self.gate_lr}")
        if not 1 <= self.start_excess < math.inf:
            raise LowRankError(f"start_excess >= 1 must hold, got {self.start_excess}")
        check_choice("start", self.start, StartKind)
        check_fraction("floor_fraction", self.floor_fraction)

    @property
    def needs_moments(self) -> bool:  # type: ignore[override]
        return self.start == "covariance"

    def layer(self, dense: Prunable) -> GatedFactors:
        shape, multiple = dense.shape, self.multiple(dense.shape)
        # a layer that keeps all it starts with must end on a multiple too
        most = shape.break_even_rank // multiple * multiple
        if self.density == 1:
            most = shape.full_rank
        uniform = self.density * shape.num_dense / shape.num_per_component
        wanted = rounded_up(math.ceil(self.start_excess * uniform), multiple)
        rank = min(max(self.min_rank, min(most, wanted)), shape.full_rank)
        return gated_start(dense, ThresholdGate, Start(kind=self.start), rank)

    def control(self, layers: dict[str, GatedFactors], currency: Currency) -> ThresholdControl:
        return ThresholdControl(layers, self, currency)

    def floors(self, shapes: Mapping[str, LayerShape]) -> dict[str, int]:
        return fraction_floors(shapes, self.density, self.floor_fraction, self.min_rank)


class ThresholdControl(Control[GatedFactors]):
    """Solves for the threshold after every step, and trains the scores along the budget."""

    method: Adaptive

    def __init__(
        self, layers: dict[str, GatedFactors], method: Adaptive, currency: Currency
    ) -> None:
        super().__init__(layers, method, currency)
        self._dense = sum(cost.dense_cost for cost in self.costs.values())
        every = {name: layer.num_components for name, layer in layers.items()}
        self._whole = self._course = Course(
            start=realized_density(every, self.costs),
            end=method.density,
            steps=method.gated_steps,
            anneal_fraction=method.anneal_fraction,
        )
        self._price = torch.zeros(())
        rate = method.gate_lr if method.gate_lr is not None else SCORE_TRAVEL / method.gated_steps
        # the scores' gradient is projected first, which no optimizer of the caller's would do
        self._optimizer = torch.optim.Adam(self.score_parameters(), lr=rate, betas=(0.9, 0.99))

    def score_parameters(self) -> list[nn.Parameter]:
        return [gate.parameter for gate in self._gates.values()]

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        return self.score_parameters()

    @property
    def _gates(self) -> dict[str, ThresholdGate]:
        return {name: _gate(layer) for name, layer in self.layers.items()}

    def aim(self, density: float, steps: int, reached: float | None = None) -> None:
        self._course = self._whole.towards(density, steps, reached)
        self._begin(replace(self.method, density=density, gated_steps=steps))

    @property
    def hardening(self) -> bool:
        """Whether scores rest and gates are driven to one side or the other."""
        return self._course.hardens(self.step_index)

    @property
    def temperature(self) -> float:
        """T of the current step."""
        return self._course.temperature(self.step_index)

    @property
    def target(self) -> float:
        return self._course.target(self.step_index)

    def expected_density(self) -> Tensor:
        gates = self._gates
        with torch.no_grad():
            kept = torch.stack([gate.kept().sum() for gate in gates.values()]).tolist()
        spent = (self.costs[name].expected(k) for name, k in zip(gates, kept, strict=True))
        return torch.tensor(sum(spent) / self._dense)

    def begin_step(self, generator: torch.Generator) -> None:
        scores: dict[str, Tensor] = {n: g.parameter for n, g in self._gates.items()}
        temperature = self.temperature
        threshold = solve_threshold(scores, self.costs, self.target * self._dense, temperature)
        limits: dict[torch.device, Tensor] = {}
        for gate in self._gates.values():
            device = gate.parameter.device
            if device not in limits:
                limits[device] = limits_of(threshold, temperature, device)
            gate.place(threshold, temperature, limits[device])

    def end_step(self) -> None:
        if self.hardening:
            self._optimizer.zero_grad(set_to_none=True)
            super().end_step()
            return
        gates = {n: g for n, g in self._gates.items() if g.parameter.grad is not None}
        if gates:
            self._project_gradients(gates)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        super().end_step()

    def _project_gradients(self, gates: dict[str, ThresholdGate]) -> None:
        """The gradients of scores become those along the budget; all layers in one go, for on a
        GPU it is the number of operations that takes the time."""
        parameters = [gate.parameter for gate in gates.values()]
        sizes = [len(parameter) for parameter in parameters]
        gradient = torch.cat([_gradient(gate) for gate in gates.values()])
        kept = torch.cat([gate.kept().detach() for gate in gates.values()]).double()
        each = torch.tensor([self.costs[name].unit_cost for name in gates], dtype=torch.float64)
        cost = each.repeat_interleave(torch.tensor(sizes)).to(kept.device)
        slope = kept * (1 - kept) / self.temperature
        along, self._price = tangent_gradients(gradient, slope, cost)
        for parameter, part in zip(parameters, along.split(sizes), strict=True):
            parameter.grad = part.to(parameter)

    def scores(self) -> dict[str, Tensor]:
        scores = {n: g.parameter.detach().float().cpu() for n, g in self._gates.items()}
        check_finite(scores)
        return scores

    def dead(self) -> dict[str, Tensor]:
        with torch.no_grad():
            every = torch.cat([gate.kept() for gate in self._gates.values()]).cpu()
        sizes = [len(gate.parameter) for gate in self._gates.values()]
        return dict(zip(self.layers, (every < CLOSED).split(sizes), strict=True))

    def follow(self, swaps: Sequence[Swap]) -> None:
        follow(self._optimizer, swaps)

    def figures(self) -> dict[str, float]:
        with torch.no_grad():
            kept = torch.cat([gate.kept() for gate in self._gates.values()])
        return {
            # nats per unit of density
            "lambda_linear": float(self._price) * self._dense,
            "undecided": float(((kept > 0.05) & (kept < 0.95)).float().mean()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        # solved from scores that may be loaded later than this
        threshold = next(iter(self._gates.values())).threshold
        state = {
            "threshold": torch.tensor(threshold, dtype=torch.float64),
            "price": self._price.clone(),
        }
        for number, parameter in enumerate(self.score_parameters()):
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"scores.{number}.{key}"] = value.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if "threshold" in state:
            for gate in self._gates.values():
                gate.place(float(state["threshold"]), gate.temperature)
        self._price = state.get("price", self._price).clone()
        for number, parameter in enumerate(self.score_parameters()):
            prefix = f"scores.{number}."
            found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            self._optimizer.state.pop(parameter, None)
            if found:
                # moments live where their parameter does, Adam's step count stays on the CPU
                self._optimizer.state[parameter] = {
                    key: value.to("cpu" if key == "step" else parameter.device, copy=True)
                    for key, value in found.items()
                }


def _gate(layer: GatedFactors) -> ThresholdGate:
    assert isinstance(layer.gate, ThresholdGate)
    return layer.gate


def _gradient(gate: ThresholdGate) -> Tensor:
    assert gate.parameter.grad is not None
    return gate.parameter.grad.detach().double()

"""Masks that follow the magnitudes on a gradual schedule: FLOP-AGP, AGP, movement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lowrank.currency import Currency
from lowrank.density import Cost, LayerShape, LinearCost, realized_density
from lowrank.errors import DensityError, LowRankError
from lowrank.magnitude import MagnitudeGate, cubic_density
from lowrank.masked import Granularity, MaskedLinear
from lowrank.methods.base import Control, Method, check_choice, check_finite, check_fraction
from lowrank.methods.start import Start, gated_start
from lowrank.projection import Projection, project
from lowrank.prunable import Prunable
from lowrank.pruned import GatedFactors, PrunedLayer

UPDATES = 50
"""Mask updates over the gated phase; Zhu and Gupta prune every 100 to 1,000 of 100,000 steps and
find the interval to matter little."""

Scope = Literal["global", "tensor"]


@dataclass(frozen=True, kw_only=True)
class GradualMethod(Method):
    """Fields of the methods that prune by magnitude on a cubic schedule."""

    gated_steps: int = 260
    anneal_fraction: float = 0.75
    """Part of the gated steps over which the density falls; then masks still follow the
    magnitudes, at the final density."""
    scope: Scope = "global"
    """`tensor`: every matrix is brought to the density by itself."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.gated_steps < 1:
            raise LowRankError(f"gated_steps >= 1 must hold, got {self.gated_steps}")
        check_fraction("anneal_fraction", self.anneal_fraction)
        check_choice("scope", self.scope, Scope)


@dataclass(frozen=True, kw_only=True)
class FlopAgp(GradualMethod):
    """Factors whose trained diagonal is pruned by magnitude (arXiv 1910.04732, section 4.2).

    The paper trains its factors from random numbers, on one scale, so that the diagonal holds what
    a component contributes. Factors of a trained matrix hold that themselves: here a component's
    magnitude is that of its whole contribution, diagonal and factors, at the inputs of its start.
    """

    gate_lr: float = 1e-3
    """Rate of the diagonal; that of weights, as published."""
    start: Start = Start()

    @property
    def needs_moments(self) -> bool:  # type: ignore[override]
        return self.start.needs_moments

    def layer(self, dense: Prunable) -> GatedFactors:
        multiple = self.multiple(dense.shape)
        return gated_start(dense, MagnitudeGate, self.start, multiple=multiple)

    def control(self, layers: dict[str, GatedFactors], currency: Currency) -> MagnitudeControl:
        return MagnitudeControl(layers, self, currency)


@dataclass(frozen=True, kw_only=True)
class Agp(GradualMethod):
    """Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878), or movement pruning
    (Sanh et al. 2020, arXiv 2005.07683), of weights, blocks, rows or columns."""

    granularity: Granularity = "weight"
    block: int = 16
    """Side of the blocks. The paper's block baseline uses 16 and 32."""
    movement: bool = False
    gate_lr: float = 1e-2
    """Rate of movement scores; that of Sanh et al."""

    def __post_init__(self) -> None:
        GradualMethod.__post_init__(self)
        check_choice("granularity", self.granularity, Granularity)
        if self.block < 1:
            raise LowRankError(f"block >= 1 must hold, got {self.block}")

    def layer(self, dense: Prunable) -> MaskedLinear:
        return MaskedLinear(dense.linear(), self.granularity, self.block, self.movement)

    def cost(self, shape: LayerShape) -> Cost:
        height, width = {
            "weight": (1, 1),
            "block": (self.block, self.block),
            "row": (1, shape.in_features),
            "column": (shape.out_features, 1),
        }[self.granularity]
        return LinearCost(shape.num_dense // (height * width), height * width)

    def control(self, layers: dict[str, MaskedLinear], currency: Currency) -> MagnitudeControl:
        return MagnitudeControl(layers, self, currency)


class MagnitudeControl(Control[PrunedLayer]):
    """Every few steps the best units by the present scores are kept, at the scheduled density."""

    method: FlopAgp | Agp

    def __init__(
        self,
        layers: dict[str, GatedFactors] | dict[str, MaskedLinear],
        method: FlopAgp | Agp,
        currency: Currency,
    ) -> None:
        super().__init__(dict(layers), method, currency)
        self._interval = max(1, method.gated_steps // UPDATES)
        self._density = 1.0
        factorized = {n: layer for n, layer in layers.items() if isinstance(layer, GatedFactors)}
        self._gains = {n: _gains(layer, self.costs[n]) for n, layer in factorized.items()}
        if method.scope == "tensor":
            self.project()  # a matrix too small for its floor must not cost a training run

    def gate_parameters(self) -> list[nn.Parameter]:
        found = [_gate_parameter(layer) for layer in self.layers.values()]
        return [parameter for parameter in found if parameter is not None]

    @property
    def gate_lr(self) -> float:
        return self.method.gate_lr

    @property
    def target(self) -> float:
        length = max(1.0, self.method.anneal_fraction * self.method.gated_steps)
        return cubic_density(self.step_index / length, self.method.density)

    def scores(self) -> dict[str, Tensor]:
        scores = {name: self._scores(name) for name in self.layers}
        check_finite(scores)
        return scores

    def _scores(self, name: str) -> Tensor:
        layer = self.layers[name]
        if isinstance(layer, MaskedLinear):
            return layer.scores()
        assert isinstance(layer, GatedFactors)
        magnitude = layer.gate.parameter.detach().abs().cpu() * _norms(layer)
        return magnitude * self._gains[name]

    def end_step(self) -> None:
        super().end_step()
        # at the last step too, or the projection would keep units that are masked
        if self.step_index % self._interval == 0 or self.step_index == self.method.gated_steps:
            projection = self._project(self.target)
            self._density = projection.density
            for name, keep in projection.keep.items():
                _set_mask(self.layers[name], keep)

    def expected_density(self) -> Tensor:
        return torch.tensor(self._density)

    def project(self) -> Projection:
        return self._project(self.method.density)

    def _project(self, density: float) -> Projection:
        scores = self.scores()
        if self.method.scope == "global":
            return project(scores, self.costs, density, self.floors)
        single = {name: self._project_one(name, score, density) for name, score in scores.items()}
        keep = {name: projection.keep[name] for name, projection in single.items()}
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        return Projection(keep, realized_density(counts, self.costs))

    def _project_one(self, name: str, score: Tensor, density: float) -> Projection:
        try:
            return project({name: score}, {name: self.costs[name]}, density, self.floors[name])
        except DensityError as error:
            raise DensityError(f"layer {name!r}: {error}") from error

    def state_dict(self) -> dict[str, Tensor]:
        # masks are buffers of the model
        gains = {f"gains.{name}": gains for name, gains in self._gains.items()}
        return {"density": torch.tensor(self._density)} | gains

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._density = float(state["density"])
        self._gains = {name: state[f"gains.{name}"].cpu() for name in self._gains}


def _gate_parameter(layer: PrunedLayer) -> nn.Parameter | None:
    if isinstance(layer, GatedFactors):
        return layer.gate.parameter
    assert isinstance(layer, MaskedLinear)
    return layer.score


def _gains(layer: GatedFactors, cost: Cost) -> Tensor:
    """What the inputs make of each component: its output over its norms, per root of its cost, so
    that squared scores are energies per cost, as `FixedRank` has them."""
    norms = _norms(layer)
    output = (layer.energy.cpu() / cost.unit_cost).sqrt()
    return torch.where(norms > 0, output / norms, 0.0)


@torch.no_grad()
def _norms(layer: GatedFactors) -> Tensor:
    """|P_k| |Q_k|, float64 [num_components]: the norm of each component's matrix."""
    return (layer.up.double().norm(dim=0) * layer.down.double().norm(dim=1)).cpu()


def _set_mask(layer: PrunedLayer, keep: Tensor) -> None:
    if isinstance(layer, MaskedLinear):
        layer.set_mask(keep)
    else:
        assert isinstance(layer, GatedFactors)
        assert isinstance(layer.gate, MagnitudeGate)
        layer.gate.set_mask(keep)

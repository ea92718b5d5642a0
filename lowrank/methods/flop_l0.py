"""FLOP-L0 and NP-L0: stochastic hard concrete gates on components, or on input features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowrank.currency import Currency
from lowrank.density import Cost, LayerShape, LinearCost
from lowrank.gate import GateConfig, HardConcreteGate
from lowrank.lagrangian import AugmentedLagrangian
from lowrank.methods.base import fraction_floors
from lowrank.methods.lagrangian_control import GatedLayer, GatedMethod, LagrangianControl
from lowrank.methods.start import Start, gated_start
from lowrank.prunable import Prunable
from lowrank.pruned import GatedFactors
from lowrank.sliced import GatedInputLinear


@dataclass(frozen=True, kw_only=True)
class HardConcreteMethod(GatedMethod):
    """Fields of the methods with hard concrete gates."""

    gate: GateConfig = field(default_factory=GateConfig)
    gate_lr: float | None = None
    """Rate of log_alpha. Default 30 / gated steps: Adam moves a parameter by about its rate per
    step, and a gate has about 7 units from open to shut, so it can shut in a quarter of the
    phase. At half that rate the multipliers wind up before the first gate moves, and the density
    overshoots (docs/results/gates.md)."""

    exact = True

    def control(self, layers: dict[str, GatedLayer], currency: Currency) -> LagrangianControl:
        rate = self.gate_lr if self.gate_lr is not None else 30.0 / self.gated_steps
        lagrangian = AugmentedLagrangian(self.penalty_lr)
        return LagrangianControl(layers, self, currency, lagrangian, rate, exact=self.exact)


@dataclass(frozen=True, kw_only=True)
class FlopL0(HardConcreteMethod):
    """Factorized L0 pruning (Wang et al. 2020, arXiv 1910.04732)."""

    start: Start = Start()
    floor_fraction: float = 0.0
    """Rank floor of each layer, of the rank that a uniform choice would give it."""
    exact: bool = True
    """False: every layer keeps its expected number of components, rounded, as published; the
    density is then what training reached."""

    @classmethod
    def faithful(
        cls, *, density: float, gated_steps: int, init_open_prob: float = 0.99, **fields: Any
    ) -> FlopL0:
        """The method as published: no price floor, plain SVD start of as many parameters as the
        matrix has, gates sampled to the end, ranks by rounding each layer's expected size.

        Kept from the corrections (docs/method.md): E[z] instead of its approximation by
        sigmoid(0.8 log_alpha), the factors scaled so that fresh gates change nothing, min(dense,
        factorized) as a layer's charge, one noise sample for all workers.

        Args:
            density: Target, 0 < density <= 1.
            gated_steps: All steps of training.
            init_open_prob: P(z > 0) at insertion. 0.99 is a published initial drop rate of 0.1.
            fields: Any other field of the method.
        """
        gate = GateConfig(price_floor=0.0, init_open_prob=init_open_prob)
        start = Start(kind="svd", rank="break-even")
        return cls(
            density=density, gated_steps=gated_steps, gate=gate, start=start, exact=False, **fields
        )

    @property
    def needs_moments(self) -> bool:  # type: ignore[override]
        return self.start.needs_moments

    def layer(self, dense: Prunable) -> GatedFactors:
        multiple = self.multiple(dense.shape)
        return gated_start(
            dense, lambda size: HardConcreteGate(size, self.gate), self.start, multiple=multiple
        )

    def multiple(self, shape: LayerShape) -> int:
        # expected sizes are rounded to the next rank, whatever that is
        return super().multiple(shape) if self.exact else 1

    def floors(self, shapes: Mapping[str, LayerShape]) -> dict[str, int]:
        return fraction_floors(shapes, self.density, self.floor_fraction, self.min_rank)


@dataclass(frozen=True, kw_only=True)
class NeuronL0(HardConcreteMethod):
    """Input-feature pruning with the same gates (NP-L0 in arXiv 1910.04732, section 4.2)."""

    def layer(self, dense: Prunable) -> GatedInputLinear:
        gate = HardConcreteGate(dense.shape.in_features, self.gate)
        return GatedInputLinear(dense.linear(), gate)

    def cost(self, shape: LayerShape) -> Cost:
        return LinearCost(shape.in_features, shape.out_features)

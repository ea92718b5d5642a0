"""What every method is to the pruner: layers to insert, and a control that drives their masks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

import torch
from torch import Tensor, nn

from lowrank.alignment import aligned, check_multiple, rank_multiple
from lowrank.currency import Currency
from lowrank.density import Cost, LayerShape, check_density, realized_density
from lowrank.errors import LowRankError
from lowrank.projection import Projection, project
from lowrank.prunable import Prunable
from lowrank.pruned import GatedFactors, PrunedLayer
from lowrank.shrinking import Swap
from lowrank.surgery import replace_layers

LayerT = TypeVar("LayerT", bound=PrunedLayer)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to choose what stays. Subclasses are plain configurations."""

    density: float
    """Target, 0 < density <= 1, of the cost of the matched matrices."""
    gated_steps: int = 0
    """Steps before the projection, in which the choice is made while weights train."""
    min_rank: int = 1
    """Units that every layer keeps at least, unless it may vanish (`FactoredShape`)."""
    rank_multiple: int | None = None
    """What ranks of factorized layers are multiples of; by default the hardware's 8, or less for
    layers whose ranks are small (`lowrank.alignment`). 1: any rank."""

    needs_moments = False
    """Whether layers are built from the moments of their inputs (`collect_moments`)."""

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.gated_steps < 0:
            raise LowRankError(f"gated_steps >= 0 must hold, got {self.gated_steps}")
        if self.min_rank < 1:
            raise LowRankError(f"min_rank >= 1 must hold, got {self.min_rank}")
        check_multiple(self.rank_multiple)

    def layer(self, dense: Prunable) -> PrunedLayer:
        """What stands for a dense layer while it is pruned; unless `layers` is the method's own.

        Raises:
            LowRankError: It cannot be pruned by this method, or not with what is known of it.
        """
        raise NotImplementedError

    def check(self, model: nn.Module, matched: Mapping[str, nn.Module]) -> None:
        """Raise SurgeryError for layers that this method cannot prune, before any training."""
        return None

    def layers(self, model: nn.Module, matched: Mapping[str, Prunable]) -> dict[str, PrunedLayer]:
        """What stands for which of the matched layers, by their names; here for every one.

        Args:
            model: Not changed.
            matched: Matrices of it, by name.
        """
        return {name: self._named_layer(name, dense) for name, dense in matched.items()}

    def _named_layer(self, name: str, dense: Prunable) -> PrunedLayer:
        try:
            return self.layer(dense)
        except LowRankError as error:
            raise LowRankError(f"layer {name!r}: {error}") from error

    def compact(
        self, model: nn.Module, layers: Mapping[str, PrunedLayer], keep: Mapping[str, Tensor]
    ) -> nn.Module:
        """The model with plain layers in place of the pruned ones.

        Args:
            model: Changed in place, unless it is itself a layer.
            layers: As `layers` made them.
            keep: Masks of their units, bool [num_units] each.
        """
        small: dict[int, nn.Module] = {}
        for name, layer in layers.items():
            small |= zip(map(id, layer.stand_ins), layer.compact_all(keep[name]), strict=True)
        return replace_layers(model, lambda _, module: small.get(id(module)))

    @abstractmethod
    def control(self, layers: dict[str, Any], currency: Currency) -> Control[Any]:
        """What drives the layers' gates or masks."""

    def cost(self, shape: LayerShape) -> Cost:
        """What units of a layer of this shape cost, in parameters."""
        return shape

    def multiple(self, shape: LayerShape) -> int:
        """What the rank of a factorized layer of this shape is a multiple of."""
        return rank_multiple(shape, self.density, self.rank_multiple)

    def floors(self, shapes: Mapping[str, LayerShape]) -> dict[str, int]:
        """Units that each layer keeps whatever its scores."""
        return {name: least_units(shape, self.min_rank) for name, shape in shapes.items()}


class Control(ABC, Generic[LayerT]):
    """Drives the gates or masks of all layers of a model.

    Args:
        layers: The inserted layers, by name.
        method: Density, steps, floors.
        currency: What the budget is counted in.
    """

    def __init__(self, layers: dict[str, LayerT], method: Method, currency: Currency) -> None:
        self.layers = layers
        self.shapes = {name: layer.shape for name, layer in layers.items()}
        self._currency = currency
        self._begin(method)

    def _begin(self, method: Method) -> None:
        self.method, self.step_index = method, 0
        self.costs: dict[str, Cost] = {
            name: self._currency.cost(name, method.cost(shape))
            for name, shape in self.shapes.items()
        }
        self.costs |= {
            name: aligned(self.costs[name], method.multiple(layer.shape))
            for name, layer in self.layers.items()
            if isinstance(layer, GatedFactors)
        }
        self.floors = method.floors(self.shapes)

    def aim(self, density: float, steps: int, reached: float | None = None) -> None:
        """Go on to another density; see `Pruner.aim`."""
        name = type(self.method).__name__
        raise LowRankError(f"{name} has one density: only Adaptive can go on to others")

    @property
    def progress(self) -> float:
        """Done part of the gated phase, in [0, 1]."""
        return min(1.0, self.step_index / max(1, self.method.gated_steps))

    def penalty(self) -> Tensor | float:
        """To be added to the loss."""
        return 0.0

    def gate_parameters(self) -> list[nn.Parameter]:
        """Trained parameters that are not weights, for the caller's optimizer."""
        return []

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters of the model that the control trains itself."""
        return []

    @property
    def gate_lr(self) -> float:
        """Rate of `gate_parameters`."""
        return 0.0

    @abstractmethod
    def scores(self) -> dict[str, Tensor]:
        """Importance of every unit, float32 on the CPU; comparable over layers."""

    def begin_step(self, generator: torch.Generator) -> None:
        """Before the first step and after every step, with one common stream on all workers."""

    def end_step(self) -> None:
        """After the optimizer's step."""
        self.step_index += 1

    def expected_density(self) -> Tensor:
        """Scalar in [0, 1]."""
        counts = {name: cost.num_units for name, cost in self.costs.items()}
        return torch.tensor(realized_density(counts, self.costs))

    @property
    def target(self) -> float:
        """Scheduled density of the current step."""
        return self.method.density

    def project(self) -> Projection:
        """Which units stay, on the budget of the final target. Changes nothing."""
        return project(self.scores(), self.costs, self.method.density, self.floors)

    def dead(self) -> dict[str, Tensor]:
        """Components that count for nothing and will not come back, bool [num_components] per
        layer, on the CPU; nothing for units that cannot leave before the projection."""
        return {}

    def follow(self, swaps: Sequence[Swap]) -> None:
        """Parameters of the model have been replaced."""

    def figures(self) -> dict[str, float]:
        """What is worth a curve, besides density and target."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        return None


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Raise LowRankError for scores that no projection can order."""
    broken = [name for name, score in scores.items() if not torch.isfinite(score).all()]
    if broken:
        raise LowRankError(f"gates are not finite, training diverged: {', '.join(broken)}")


def fraction_floors(
    shapes: Mapping[str, LayerShape], density: float, fraction: float, least: int
) -> dict[str, int]:
    """A fraction of the rank that a uniform choice would give each layer, at least `least`.

    Units whose scores cannot be compared over layers would otherwise empty the layers with the
    smaller scores.
    """
    return {
        name: max(
            least_units(shape, least),
            min(shape.full_rank, math.floor(fraction * density * break_even)),
        )
        for name, shape in shapes.items()
        for break_even in [shape.num_dense / shape.num_per_component]
    }


def least_units(shape: LayerShape, least: int) -> int:
    """`least`, but for matrices that may vanish: those have to earn even their first component."""
    return least if shape.least_rank else 0


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise LowRankError unless `value` is one of a Literal's values."""
    allowed = get_args(choices)
    if value not in allowed:
        raise LowRankError(f"{name} must be one of {allowed}, got {value!r}")


def check_fraction(name: str, value: float) -> None:
    """Raise LowRankError unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise LowRankError(f"0 <= {name} <= 1 must hold, got {value}")

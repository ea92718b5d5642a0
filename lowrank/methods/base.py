"""What every method is to the pruner: layers to insert, and a control that drives their masks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

import torch
from torch import Tensor, nn

from lowrank.currency import Currency
from lowrank.density import Cost, LayerShape, check_density, realized_density
from lowrank.errors import LowRankError
from lowrank.projection import Projection, project
from lowrank.prunable import Prunable
from lowrank.pruned import PrunedLayer

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

    needs_moments = False
    """Whether layers are built from the moments of their inputs (`collect_moments`)."""

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.gated_steps < 0:
            raise LowRankError(f"gated_steps >= 0 must hold, got {self.gated_steps}")
        if self.min_rank < 1:
            raise LowRankError(f"min_rank >= 1 must hold, got {self.min_rank}")

    @abstractmethod
    def layer(self, dense: Prunable) -> PrunedLayer:
        """What stands for a dense layer while it is pruned.

        Raises:
            LowRankError: It cannot be pruned by this method, or not with what is known of it.
        """

    @abstractmethod
    def control(self, layers: dict[str, Any], currency: Currency) -> Control[Any]:
        """What drives the layers' gates or masks."""

    def cost(self, shape: LayerShape) -> Cost:
        """What units of a layer of this shape cost, in parameters."""
        return shape

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
        self.layers, self.method = layers, method
        self.step_index = 0
        shapes = {name: layer.shape for name, layer in layers.items()}
        self.costs = {name: currency.cost(name, method.cost(s)) for name, s in shapes.items()}
        self.floors = method.floors(shapes)

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

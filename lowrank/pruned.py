"""What stands in a model for a matrix that is being pruned, whatever uses the matrix."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from lowrank.density import LayerShape
from lowrank.gate import Gate
from lowrank.shrinking import Swap, swap


class PrunedLayer(nn.Module):
    """A layer whose units are being pruned, until `compact`.

    Args:
        shape: Of its matrix.
    """

    shape: LayerShape
    dense_from: int
    """Least number of kept components at which a factorized layer is stored as one dense matrix
    again; by default the first whose factors are not smaller than it."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        self.dense_from = shape.break_even_rank + 1

    @property
    def stand_ins(self) -> tuple[nn.Module, ...]:
        """The modules in the model, this one first: one for each that the matrix had."""
        return (self,)

    @abstractmethod
    def compact(self, keep: Tensor) -> nn.Module:
        """The plain layer with the kept units.

        Args:
            keep: Mask of units, bool [num_units], at least one set.
        """

    def compact_all(self, keep: Tensor) -> tuple[nn.Module, ...]:
        """What takes the place of each of the `stand_ins`."""
        return (self.compact(keep),)


class GatedFactors(PrunedLayer):
    """A matrix as up diag(gate) down, one gate per rank-1 component."""

    gate: Gate
    down: nn.Parameter
    """Q, [num_components, in_features]."""
    up: nn.Parameter
    """P, [out_features, num_components]."""
    energy: Tensor
    """Mean squared output of each component at the start, [num_components] float64."""

    factor_names = ("down", "up")
    """Parameters that are Q and P."""

    @property
    def num_components(self) -> int:
        return len(self.down)

    def drop(self, keep: Tensor) -> list[Swap]:
        """Have only some of the components from now on.

        Args:
            keep: Mask, bool [num_components].
        """
        found = []
        for dim, name in enumerate(self.factor_names):
            found.append(swap(getattr(self, name), dim, keep))
            setattr(self, name, found[-1].new)
        self.energy = self.energy[keep.to(self.energy.device)]
        return [*found, self.gate.drop(keep)]

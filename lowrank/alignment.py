"""Ranks that processors like: multiples of the width of their vector registers.

A product with an inner or outer size just above a multiple pays for the whole next one. On two
cores of a Xeon (AVX-512, float32) and 2,048 rows a rank of 61 took 7-35 % longer per component than
64, and 93 took 6-24 % longer than 96 (docs/results/alignment.md); tensor cores want 16 bytes.

A layer is charged for the next multiple as soon as it has one component beyond the last, so that
what rounding costs is part of the budget, and projections end on multiples by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowrank.density import Cost, LayerShape
from lowrank.errors import LowRankError

HARDWARE_MULTIPLE = 8
"""Eight float32 fill a register of AVX2, sixteen one of AVX-512, which gained nothing clear beyond
eight here; eight bfloat16 are the 16 bytes that tensor cores read."""
LEAST_STEPS = 8
"""Multiples in a layer's uniform rank, at least, or the multiple is halved: rounding then moves a
rank by 1/16 on average."""


@dataclass(frozen=True, slots=True)
class AlignedCost:
    """A cost that is charged in whole multiples of units."""

    base: Cost
    multiple: int

    @property
    def num_units(self) -> int:
        return self.base.num_units

    @property
    def unit_cost(self) -> float:
        return self.base.unit_cost

    @property
    def dense_cost(self) -> float:
        return self.base.dense_cost

    def cost(self, kept: int) -> float:
        return self.base.cost(min(self.num_units, rounded_up(kept, self.multiple)))

    def expected(self, kept: float) -> float:
        """Without the rounding: half-open gates do not add up to whole ranks."""
        return self.base.expected(kept)

    def charge(self, kept: Tensor) -> Tensor:
        return self.base.charge(kept)


def aligned(cost: Cost, multiple: int) -> Cost:
    """The cost, charged in multiples."""
    return cost if multiple == 1 else AlignedCost(cost, multiple)


def rank_multiple(shape: LayerShape, density: float, wanted: int | None) -> int:
    """What a layer's rank should be a multiple of.

    Args:
        shape: Of its matrix.
        density: Target; decides how large its rank will be about.
        wanted: >= 1, taken as it is as far as the layer's break-even rank allows; None for the
            hardware's, less for thin layers.

    Returns:
        1 where ranks are not rounded.
    """
    if wanted is not None:
        return min(wanted, max(1, shape.break_even_rank))
    uniform = density * shape.num_dense / shape.num_per_component
    multiple = HARDWARE_MULTIPLE
    while multiple > 1 and multiple * LEAST_STEPS > uniform:
        multiple //= 2
    return multiple


def check_multiple(multiple: int | None) -> None:
    """Raise LowRankError unless it is None or at least 1."""
    if multiple is not None and multiple < 1:
        raise LowRankError(f"rank_multiple >= 1 must hold, got {multiple}")


def rounded_up(rank: int, multiple: int) -> int:
    """The next multiple, or the rank itself if it is one."""
    return -(-rank // multiple) * multiple

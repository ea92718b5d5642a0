"""Where the factors of a layer start: plain SVD, or SVD in the metric of the layer's inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from lowrank.errors import LowRankError
from lowrank.gate import Gate
from lowrank.prunable import Prunable
from lowrank.pruned import GatedFactors

StartKind = Literal["svd", "covariance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """How a dense layer becomes factors."""

    kind: StartKind = "svd"
    """`covariance` approximates the outputs on the training data instead of the weights."""
    rank: Literal["full", "break-even"] = "full"
    """`break-even`: no more components than the dense matrix is worth; cheaper steps, but a layer
    cannot come back dense."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(StartKind):
            raise LowRankError(f"start must be one of {get_args(StartKind)}, got {self.kind!r}")

    @property
    def needs_moments(self) -> bool:
        return self.kind == "covariance"


def gated_start(
    dense: Prunable,
    make_gate: Callable[[int], Gate],
    start: Start,
    rank: int | None = None,
    multiple: int = 1,
) -> GatedFactors:
    """The gated layer for a dense one.

    Args:
        dense: What to prune.
        make_gate: From a number of components to their fresh gate.
        start: Where the factors start.
        rank: Overrides the start's own.
        multiple: Of components at a break-even start.
    """
    shape = dense.shape
    if rank is None and start.rank == "break-even":
        most = shape.break_even_rank // multiple * multiple
        rank = max(1, min(shape.full_rank, most))
    factors, mean = dense.factorize(rank, weighted=start.needs_moments)
    return dense.gated(make_gate(len(factors.down)), factors, mean)

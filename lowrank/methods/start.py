"""Where the factors of a layer start: plain SVD, or SVD in the metric of the layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from lowrank.errors import LowRankError
from lowrank.factorize import Factorization, factorize
from lowrank.linear import dense_weight, layer_shape
from lowrank.moments import InputMoments

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


def start_factors(
    dense: nn.Module, start: Start, moments: InputMoments | None, rank: int | None = None
) -> tuple[Factorization, Tensor | None]:
    """Factors of a dense layer and the mean input that belongs to them.

    Args:
        dense: The layer.
        start: Which.
        moments: Of its inputs; needed by `covariance`.
        rank: Overrides the start's own.

    Returns:
        The factors; and for a layer with a bias, whose factors then approximate deviations from
        the mean, that mean.
    """
    shape = layer_shape(dense)
    if rank is None and start.rank == "break-even":
        rank = max(1, min(shape.full_rank, shape.break_even_rank))
    weight = dense_weight(dense)
    if not start.needs_moments:
        return factorize(weight, rank), None
    if moments is None:
        raise LowRankError("a covariance start needs the moments of the layer's inputs")
    if dense.bias is None:
        return factorize(weight, rank, second_moment=moments.second_moment), None
    return factorize(weight, rank, second_moment=moments.covariance), moments.mean

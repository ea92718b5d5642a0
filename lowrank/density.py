"""Counting: what a matrix costs dense and factorized, always against the dense original.

A density is a kept fraction of original parameters, 0 < density <= 1. Biases are not part of
it: they belong to "other", in the whole-model figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.errors import DensityError


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The matrix of one layer, y = W x with W of [out_features, in_features]."""

    in_features: int
    out_features: int

    @property
    def num_dense(self) -> int:
        """Parameters of the matrix; also its multiply-accumulates per token."""
        return self.in_features * self.out_features

    @property
    def num_per_component(self) -> int:
        """Parameters of one rank-1 component."""
        return self.in_features + self.out_features

    @property
    def full_rank(self) -> int:
        return min(self.in_features, self.out_features)

    @property
    def break_even_rank(self) -> int:
        """Largest rank whose two factors are smaller than the matrix; may be 0."""
        return (self.num_dense - 1) // self.num_per_component

    def num_parameters(self, rank: int) -> int:
        """Stored parameters at a rank: min(dense, factorized), for the cheaper form is stored."""
        return min(self.num_dense, rank * self.num_per_component)


def check_density(density: float) -> float:
    """Return `density` unchanged, or raise DensityError unless 0 < density <= 1."""
    if not (isinstance(density, int | float) and 0 < density <= 1):
        raise DensityError(f"0 < density <= 1 must hold, got {density!r}")
    return density


def budget(shapes: Iterable[LayerShape], density: float) -> int:
    """Parameters that a density allows, rounded down."""
    total = sum(shape.num_dense for shape in shapes)
    # the nudge keeps 0.3 * 10 from becoming 2 through binary rounding
    return math.floor(check_density(density) * total * (1 + 1e-12))


def realized_density(ranks: Mapping[str, int], shapes: Mapping[str, LayerShape]) -> float:
    """Stored parameters over dense parameters, for layers at given ranks."""
    kept = sum(shape.num_parameters(ranks[name]) for name, shape in shapes.items())
    return kept / sum(shape.num_dense for shape in shapes.values())


def expected_density(open_prob: Mapping[str, Tensor], shapes: Mapping[str, LayerShape]) -> Tensor:
    """Expected density under independent gates, differentiable, float32.

    Each layer is charged min(dense, factorized). Where the factors are the dearer form the value
    is capped but the gradient is still that of the factors: a layer that starts at full rank
    would otherwise get no gradient until it had found its own way below break-even.

    Args:
        open_prob: P(z > 0) per component and layer, [rank] each.
        shapes: Layer shapes under the same names.

    Returns:
        Scalar; in [0, 1].
    """
    total = sum(shape.num_dense for shape in shapes.values())
    charged = []
    for name, shape in shapes.items():
        factorized = open_prob[name].float().sum() * shape.num_per_component
        excess = (factorized - shape.num_dense).clamp(min=0).detach()
        charged.append(factorized - excess)
    return torch.stack(charged).sum() / total

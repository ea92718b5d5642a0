"""Factorization of one weight matrix: W = up @ down, by singular value decomposition.

Pure tensor maths; nothing here knows modules.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.errors import LowRankError


@dataclass(frozen=True, slots=True)
class Factorization:
    """Two factors whose product approximates a matrix.

    Component k is the rank-1 matrix `outer(up[:, k], down[k])`; components are ordered by
    singular value, largest first, and balanced: `norm(up[:, k]) == norm(down[k])`, so that an
    optimizer sees both factors on one scale.
    """

    down: Tensor
    """Q, [rank, in_features]."""
    up: Tensor
    """P, [out_features, rank]."""
    nmse: float
    """Squared Frobenius error relative to the squared norm of the matrix; 0 for a zero matrix."""


def factorize(weight: Tensor, rank: int | None = None) -> Factorization:
    """Truncated SVD in float64, the best approximation in the Frobenius norm (Eckart-Young).

    Args:
        weight: W, [out_features, in_features], finite.
        rank: Components to keep, 1 <= rank <= min(weight.shape); all by default, which
            reproduces W to rounding.

    Returns:
        Factors in the dtype and on the device of `weight`.

    Raises:
        LowRankError: The weight is not a finite matrix, or the rank is out of range.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise LowRankError(f"a non-empty matrix is needed, got shape {tuple(weight.shape)}")
    full_rank = min(weight.shape)
    rank = full_rank if rank is None else rank
    if not 1 <= rank <= full_rank:
        raise LowRankError(f"1 <= rank <= {full_rank} must hold, got {rank}")
    matrix = weight.detach().to(torch.float64)
    if not torch.isfinite(matrix).all():
        raise LowRankError("the weight holds values that are not finite")
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    root = singular[:rank].sqrt()
    # relative to the largest, whose square may overflow
    relative = singular / singular[0] if singular[0] > 0 else singular
    energy = relative.square().sum()
    lost = relative[rank:].square().sum()
    # LAPACK's results are column-major, which safetensors refuses
    return Factorization(
        down=(root[:, None] * right[:rank]).to(weight.dtype).contiguous(),
        up=(left[:, :rank] * root).to(weight.dtype).contiguous(),
        nmse=float(lost / energy) if energy > 0 else 0.0,
    )

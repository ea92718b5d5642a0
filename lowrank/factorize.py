"""Factorization of one weight matrix: W = up @ down, by singular value decomposition.

Pure tensor maths; nothing here knows modules. Without knowledge of the inputs the error is that of
the matrix; with their second moment (`lowrank.moments`) it is that of the layer's output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.errors import LowRankError

IMPROPER = 1e-3
"""How far, relative to its largest entry, a second moment may be from one: float32 sums and
half-precision storage stay below it, another matrix passed by mistake seldom does."""

SMOOTHING = 1.0
"""Added to the count of every row (Laplace's rule): a row that was never seen weighs as one seen
once, so that it is still represented and no weight is 0."""


@dataclass(frozen=True, slots=True)
class Factorization:
    """Two factors whose product approximates a matrix.

    Component k is the rank-1 matrix `outer(up[:, k], down[k])`; components are ordered by
    energy, largest first, and balanced: `norm(up[:, k]) == norm(down[k])`, so that an
    optimizer sees both factors on one scale. The columns of `up` are orthogonal.
    """

    down: Tensor
    """Q, [rank, in_features]."""
    up: Tensor
    """P, [out_features, rank]."""
    nmse: float
    """Energy of the components left out relative to that of all; 0 where there is none. Without a
    second moment this is the squared Frobenius error relative to the squared norm."""
    energy: Tensor
    """Mean squared output of each component, summed over out_features, per row of input: float64
    [rank], not increasing. Outputs of different components are orthogonal, so leaving out a set of
    components costs exactly the sum of their energies. Without a second moment the squared
    singular values, which is the same for inputs whose second moment is the identity."""


def factorize(
    weight: Tensor,
    rank: int | None = None,
    *,
    second_moment: Tensor | None = None,
    damping: float = 1e-4,
) -> Factorization:
    """The product of a given rank that is closest to a matrix, computed in float64.

    Without `second_moment` closest in the Frobenius norm: truncated SVD (Eckart, Young 1936). With
    it closest in the output, mean |W x - P Q x|² = |(W - P Q) S|² for S Sᵀ = G, which is the same
    theorem applied to W S and the objective of SVD-LLM (Wang et al. 2024, arXiv 2403.07378). Where
    they multiply the truncated W S by S⁻¹, nothing is inverted here: with U_r the leading left
    singular vectors of W S, the same product is U_r (U_rᵀ W), and a singular G does no harm.

    Args:
        weight: W, [out_features, in_features], finite.
        rank: Components to keep, 1 <= rank <= min(weight.shape); all by default, which
            reproduces W to rounding whatever the second moment.
        second_moment: G, mean of x xᵀ over rows of input, [in_features, in_features], positive
            semi-definite to rounding. For a layer with a bias pass the centred covariance and
            correct the bias by `bias_shift`: together they are the optimum. Zero, for inputs that
            are all zero, orders components as the plain SVD does.
        damping: >= 0, times the mean diagonal of G, added to the diagonal to choose components. It
            decides between those whose outputs these inputs do not tell apart; at 0 the result is
            the optimum for G itself. Energies and error are those of G without it.

    Returns:
        Factors in the dtype and on the device of `weight`.

    Raises:
        LowRankError: The weight is not a finite matrix, the rank is out of range, the second
            moment has another shape, is not finite or no second moment, or the damping is negative.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise LowRankError(f"a non-empty matrix is needed, got shape {tuple(weight.shape)}")
    full_rank = min(weight.shape)
    rank = full_rank if rank is None else rank
    if not 1 <= rank <= full_rank:
        raise LowRankError(f"1 <= rank <= {full_rank} must hold, got {rank}")
    if not (math.isfinite(damping) and damping >= 0):
        raise LowRankError(f"damping >= 0 must hold, got {damping}")
    matrix = weight.detach().to(torch.float64)
    if not torch.isfinite(matrix).all():
        raise LowRankError("the weight holds values that are not finite")
    if second_moment is None:
        left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
        # relative to the largest, whose square may overflow
        relative = (singular / singular[0] if singular[0] > 0 else singular).square()
        norms, energy = singular, singular.square()
    else:
        size = _largest(matrix)
        gram, unit = _checked_moment(second_moment, matrix)
        left, norms, right, relative = _components(matrix / size, gram, damping)
        # in this order: size² alone may overflow where the product does not
        norms, energy = norms * size, relative * unit * size * size
    root = norms[:rank].sqrt()
    total, lost = relative.sum(), relative[rank:].sum()
    # LAPACK's results are column-major, which safetensors refuses
    return Factorization(
        down=(root[:, None] * right[:rank]).to(weight.dtype).contiguous(),
        up=(left[:, :rank] * root).to(weight.dtype).contiguous(),
        nmse=float(lost / total) if total > 0 else 0.0,
        energy=energy[:rank].clone(),
    )


def factorize_rows(
    weight: Tensor,
    counts: Tensor,
    rank: int | None = None,
    *,
    second_moment: Tensor | None = None,
    damping: float = 1e-4,
) -> Factorization:
    """The product of a given rank that is closest to a matrix whose rows matter unequally.

    Least sum over v of f_v (w_v - p_v Q) G (w_v - p_v Q)ᵀ, f the rows' shares of the counts: for an
    embedding the expected squared error of a token's vector, and with G the second moment of what
    enters a tied output projection that of a token's logit. Rows weighted by √f_v make it the
    problem of `factorize`, whose solution's rows are divided by √f_v again; G is not inverted, and
    no f_v is 0, for `SMOOTHING` is added to every count.

    Args:
        weight: W, [rows, columns], finite.
        counts: How often each row is used, >= 0, [rows].
        rank: As in `factorize`.
        second_moment: G, [columns, columns]; the identity by default.
        damping: As in `factorize`.

    Returns:
        Balanced factors in the dtype and on the device of `weight`; `nmse` and `energy` are of the
        weighted error, and the columns of `up` are orthogonal under the weights.

    Raises:
        LowRankError: As `factorize`; or the counts have another shape, are negative or not finite.
    """
    if counts.shape != weight.shape[:1]:
        raise LowRankError(f"one count per row is needed, {len(weight)}, got {list(counts.shape)}")
    number = counts.detach().to(weight.device, torch.float64)
    if not (torch.isfinite(number).all() and number.min() >= 0):
        raise LowRankError("counts >= 0 must hold and be finite")
    root = ((number + SMOOTHING) / (number + SMOOTHING).sum()).sqrt()[:, None]
    weighted = weight.detach().to(torch.float64) * root
    found = factorize(weighted, rank, second_moment=second_moment, damping=damping)
    up, down = found.up / root, found.down
    sizes = up.norm(dim=0), down.norm(dim=1)
    scale = torch.where(sizes[0] * sizes[1] > 0, (sizes[1] / sizes[0]).sqrt(), 1.0)
    return Factorization(
        down=(down / scale[:, None]).to(weight.dtype).contiguous(),
        up=(up * scale).to(weight.dtype).contiguous(),
        nmse=found.nmse,
        energy=found.energy,
    )


def bias_shift(removed: Tensor, mean: Tensor) -> Tensor:
    """What a bias gains to make up for the mean output of what was removed from the weight.

    mean |(W - P Q) x + b - b'|² is least for b' = b + (W - P Q) mean, and what remains is the error
    in the metric of the centred covariance: the energy of the components that were left out.

    Args:
        removed: W - P Q, [out_features, in_features].
        mean: Of the inputs, [in_features].

    Returns:
        b' - b, float64 [out_features].
    """
    return removed.detach().to(torch.float64) @ mean.to(removed.device, torch.float64)


def _components(
    matrix: Tensor, gram: Tensor, damping: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All components of W in the metric of G, by energy.

    Returns:
        U [out_features, full_rank], orthonormal; norms [full_rank] and directions [full_rank,
        in_features] of the rows of Uᵀ W; energies [full_rank].
    """
    rows, columns = matrix.shape
    # W = B C with B orthonormal: full rank reproduces W even where G is singular, and the
    # eigenproblem of C G Cᵀ has the smaller side of W
    basis, core = torch.linalg.qr(matrix) if rows > columns else (None, matrix)
    identity = torch.eye(columns, dtype=gram.dtype, device=gram.device)
    strength = float(gram.diagonal().mean())
    damped = gram + damping * strength * identity if strength > 0 else identity
    # squares the singular values of W S, so those below 1e-8 of the largest come in any order; what
    # that costs is below the rounding of the total
    vectors = torch.linalg.eigh(core @ damped @ core.t()).eigenvectors.flip(1)
    projected = vectors.t() @ core
    energy = ((projected @ gram) * projected).sum(1)
    # what is rounding, negative or not, must not overrule the order that damping gave
    noise = columns * torch.finfo(energy.dtype).eps * energy.clamp(min=0).sum()
    energy = torch.where(energy > noise, energy, 0.0)
    energy, order = energy.sort(descending=True, stable=True)
    projected, vectors = projected[order], vectors[:, order]
    norms = projected.norm(dim=1)
    directions = projected / torch.where(norms > 0, norms, 1.0)[:, None]
    return (vectors if basis is None else basis @ vectors), norms, directions, energy


def _checked_moment(second_moment: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """G, symmetric, float64, its largest entry 1 (or 0), and the unit it was divided by."""
    columns = matrix.shape[1]
    if second_moment.shape != (columns, columns):
        raise LowRankError(
            f"the second moment must have shape {(columns, columns)}, "
            f"got {tuple(second_moment.shape)}"
        )
    gram = second_moment.detach().to(matrix.device, torch.float64)
    if not torch.isfinite(gram).all():
        raise LowRankError("the second moment holds values that are not finite")
    unit = _largest(gram)
    gram = gram / unit
    diagonal = gram.diagonal()
    # the largest entry of a positive semi-definite matrix is on its diagonal
    proper = (
        (gram - gram.t()).abs().max() <= IMPROPER
        and diagonal.min() >= -IMPROPER
        and diagonal.max() >= gram.abs().max() - IMPROPER
    )
    if not proper:
        raise LowRankError(
            "the second moment must be symmetric and positive semi-definite: entries relative to "
            f"the largest differ by up to {float((gram - gram.t()).abs().max()):.3g} from their "
            f"mirror image, and the diagonal is from {float(diagonal.min()):.3g} "
            f"to {float(diagonal.max()):.3g}"
        )
    return (gram + gram.t()) / 2, unit


def _largest(tensor: Tensor) -> Tensor:
    """The largest magnitude, or 1 for a tensor of zeros: a divisor."""
    largest = tensor.abs().max()
    return torch.where(largest > 0, largest, 1.0)

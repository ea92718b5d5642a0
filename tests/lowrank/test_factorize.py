from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank import LowRankError, factorize
from tests.lowrank import relative_error

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 7), (7, 1), (1, 1)]


def matrix(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def product(factors):
    return factors.up.double() @ factors.down.double()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_reproduces_the_matrix(shape, dtype, tolerance):
    weight = matrix(shape).to(dtype)
    factors = factorize(weight)
    assert factors.down.shape == (min(shape), shape[1])
    assert factors.up.shape == (shape[0], min(shape))
    assert factors.down.dtype == factors.up.dtype == dtype
    assert factors.down.is_contiguous()
    assert factors.up.is_contiguous()
    assert relative_error(product(factors), weight) < tolerance
    assert factors.nmse == 0


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_truncation_error_is_the_tail_of_the_singular_values(rows, columns, seed, data):
    weight = matrix((rows, columns), seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    factors = factorize(weight, rank)
    tail = np.linalg.svd(weight.numpy(), compute_uv=False)[rank:]
    error = float((product(factors) - weight).square().sum())
    assert error == pytest.approx(float((tail**2).sum()), abs=1e-12)
    assert factors.nmse == pytest.approx(error / float(weight.square().sum()), abs=1e-13)


def best_alternating_least_squares(weight, rank, starts=6, sweeps=400):
    """Squared error of the best rank-`rank` product found, without any SVD."""
    best = math.inf
    for start in range(starts):
        up = np.random.default_rng(start).standard_normal((weight.shape[0], rank))
        for _ in range(sweeps):
            down = np.linalg.solve(up.T @ up, up.T @ weight)
            up = np.linalg.solve(down @ down.T, down @ weight.T).T
        best = min(best, float(((up @ down - weight) ** 2).sum()))
    return best


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 5), (4, 7)])
def test_no_other_product_of_that_rank_is_closer(shape, rank):
    weight = matrix(shape, seed=3)
    error = float((product(factorize(weight, rank)) - weight).square().sum())
    rival = best_alternating_least_squares(weight.numpy(), rank)
    assert error <= rival * (1 + 1e-9)
    assert rival == pytest.approx(error, rel=1e-3)  # the rival is no straw man


@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_balanced_and_ordered(shape):
    factors = factorize(matrix(shape, seed=1))
    down, up = factors.down.norm(dim=1), factors.up.norm(dim=0)
    torch.testing.assert_close(down, up)
    strengths = (down * up).tolist()
    assert strengths == sorted(strengths, reverse=True)
    gram = factors.down @ factors.down.t()
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (1e30, torch.float32),
        (1e-30, torch.float32),
        (1e4, torch.float16),
        (1e200, torch.float64),
        (1e-200, torch.float64),
    ],
)
def test_scale_changes_nothing_but_scale(scale, dtype):
    weight = matrix((6, 4), seed=2)
    full, half = factorize((weight * scale).to(dtype)), factorize((weight * scale).to(dtype), 2)
    tolerance = 10 * torch.finfo(dtype).eps
    assert relative_error(product(full) / scale, weight) < tolerance
    assert half.nmse == pytest.approx(factorize(weight, 2).nmse, rel=tolerance)


def test_a_zero_matrix_has_zero_factors_and_no_error():
    factors = factorize(torch.zeros(4, 3), 2)
    assert not factors.down.any()
    assert not factors.up.any()
    assert factors.nmse == 0


@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_deficient_matrix_needs_only_its_rank(rank):
    weight = matrix((6, rank), 4) @ matrix((rank, 5), 5)
    factors = factorize(weight, rank)
    assert factors.nmse < 1e-28
    assert relative_error(product(factors), weight) < 1e-14
    spare = factorize(weight).up.norm(dim=0)[rank:]
    assert spare.max() < 1e-7  # the root of a rounding error


def test_the_weight_is_left_alone():
    weight = torch.nn.Parameter(matrix((4, 3)))
    before = weight.detach().clone()
    factors = factorize(weight)
    assert torch.equal(weight, before)
    assert not factors.down.requires_grad
    assert not factors.up.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    weight = torch.ones(3, 3)
    weight[1, 2] = value
    with pytest.raises(LowRankError, match="not finite"):
        factorize(weight)


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(LowRankError, match=f"1 <= rank <= 3 must hold, got {rank}"):
        factorize(torch.ones(3, 5), rank)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (3, 0)])
def test_what_is_not_a_matrix_is_refused(shape):
    with pytest.raises(LowRankError, match="non-empty matrix"):
        factorize(torch.ones(shape))

"""The best factors of a matrix whose rows matter unequally."""

from __future__ import annotations

import math

import pytest
import torch

from lowrank import LowRankError, factorize, factorize_rows
from lowrank.factorize import SMOOTHING
from tests.lowrank import relative_error

ROWS, COLUMNS = 9, 4
COUNTS = torch.tensor([1000.0, 300.0, 80.0, 20.0, 9.0, 3.0, 1.0, 0.0, 0.0])


def matrix(seed=0, rows=ROWS, columns=COLUMNS):
    return torch.randn(
        rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def metric(seed=50, columns=COLUMNS):
    rows = matrix(seed, 40, columns) @ torch.diag(torch.logspace(0, -1, columns).double())
    return rows.t() @ rows / 40


def shares(counts=COUNTS):
    smooth = counts.double() + SMOOTHING
    return smooth / smooth.sum()


def error(weight, approximation, gram):
    """sum_v f_v |(w_v - p_v Q) S|^2, row by row."""
    total = 0.0
    for share, row, other in zip(shares(), weight, approximation, strict=True):
        total += float(share * (row - other) @ gram @ (row - other))
    return total


def least_by_alternating(weight, rank, gram, starts=8, sweeps=500):
    """Rows given Q and Q given rows are least-squares problems; the best of several starts."""
    weights, best = shares()[:, None], math.inf
    for seed in range(starts):
        down = matrix(seed + 300, rank, weight.shape[1])
        for _ in range(sweeps):
            up = torch.linalg.solve(down @ gram @ down.t(), down @ gram @ weight.t()).t()
            down = torch.linalg.solve(up.t() @ (weights * up), up.t() @ (weights * weight))
        best = min(best, error(weight, up @ down, gram))
    return best


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("with_metric", [False, True])
def test_no_other_product_of_that_rank_is_closer(rank, with_metric):
    weight = matrix()
    gram = metric() if with_metric else torch.eye(COLUMNS, dtype=torch.float64)
    found = factorize_rows(
        weight, COUNTS, rank, second_moment=gram if with_metric else None, damping=0.0
    )
    least = least_by_alternating(weight, rank, gram)
    reached = error(weight, found.up @ found.down, gram)
    assert reached == pytest.approx(least, rel=1e-6)
    # and what a plain factorization reaches is another thing
    plain = factorize(weight, rank)
    assert error(weight, plain.up @ plain.down, gram) > 1.02 * least


@pytest.mark.parametrize("with_metric", [False, True])
def test_components_left_out_cost_their_energy(with_metric):
    weight = matrix()
    gram = metric() if with_metric else torch.eye(COLUMNS, dtype=torch.float64)
    found = factorize_rows(weight, COUNTS, second_moment=gram if with_metric else None)
    for kept in range(COLUMNS + 1):
        lost = error(weight, found.up[:, :kept] @ found.down[:kept], gram)
        assert lost == pytest.approx(float(found.energy[kept:].sum()), rel=1e-9, abs=1e-12)
    assert (found.energy.diff() <= 0).all()
    half = factorize_rows(weight, COUNTS, 2, second_moment=gram if with_metric else None)
    assert half.nmse == pytest.approx(float(found.energy[2:].sum() / found.energy.sum()))


@pytest.mark.parametrize(("rows", "columns"), [(9, 4), (4, 9), (5, 5), (1, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_full_rank_is_the_matrix_even_for_rows_never_seen(rows, columns, dtype, tolerance):
    weight = matrix(3, rows, columns).to(dtype)
    counts = torch.logspace(9, 0, rows)
    counts[-1] = 0
    singular = torch.zeros(columns, columns, dtype=torch.float64)
    singular[0, 0] = 1.0
    for gram in (None, singular):
        found = factorize_rows(weight, counts, second_moment=gram)
        assert found.up.dtype == found.down.dtype == dtype
        # row by row, for a rare one is small in the norm of all
        product = found.up.double() @ found.down.double()
        for row, wanted in zip(product, weight, strict=True):
            assert relative_error(row, wanted) < tolerance


def test_equal_counts_are_the_plain_factorization():
    weight = matrix()
    found, plain = factorize_rows(weight, torch.full((ROWS,), 7), 2), factorize(weight, 2)
    assert relative_error(found.up @ found.down, plain.up @ plain.down) < 1e-12
    assert relative_error(found.energy * ROWS, plain.energy) < 1e-12
    assert found.nmse == pytest.approx(plain.nmse)


def test_factors_are_balanced_and_a_zero_row_stays_zero():
    weight = matrix()
    weight[2] = 0
    found = factorize_rows(weight, COUNTS, 3)
    torch.testing.assert_close(found.up.norm(dim=0), found.down.norm(dim=1))
    assert found.up[2].abs().max() < 1e-14
    zero = factorize_rows(torch.zeros(ROWS, COLUMNS), COUNTS)
    assert not zero.up.any()
    assert not zero.down.any()
    assert zero.nmse == 0


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.ones(ROWS - 1), r"one count per row is needed, 9, got \[8\]"),
        (torch.ones(ROWS, 1), r"one count per row is needed, 9, got \[9, 1\]"),
        (-torch.ones(ROWS), "counts >= 0 must hold and be finite"),
        (torch.full((ROWS,), math.nan), "counts >= 0 must hold and be finite"),
    ],
)
def test_counts_that_are_none_are_refused(counts, message):
    with pytest.raises(LowRankError, match=message):
        factorize_rows(matrix(), counts, 2)

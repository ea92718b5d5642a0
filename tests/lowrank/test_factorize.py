from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank import LowRankError, factorize
from lowrank.factorize import bias_shift
from tests.lowrank import relative_error

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 7), (7, 1), (1, 1)]


def matrix(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def product(factors):
    return factors.up.double() @ factors.down.double()


def inputs(columns, count=50, seed=0, spread=1.5, mean=0.0):
    """Rows with correlated features of unequal scale, [count, columns] in float64."""
    scales = torch.logspace(0, -spread, columns, dtype=torch.float64)
    mixed = matrix((count, columns), seed + 100) @ torch.diag(scales)
    return mixed @ matrix((columns, columns), seed + 200) + mean


def second_moment(rows):
    return rows.t() @ rows / len(rows)


def output_error(factors, weight, rows, components=slice(None)):
    """Mean over rows of the squared error of the output, with some of the components."""
    kept = factors.up[:, components].double() @ factors.down[components].double()
    return float((rows @ (weight.double() - kept).t()).square().sum(1).mean())


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
    assert factors.energy.shape == (rank,)
    assert error == pytest.approx(float(factorize(weight).energy[rank:].sum()), abs=1e-12)
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
    assert not factors.energy.any()
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


METRIC_SHAPES = [*SHAPES, (12, 5), (5, 12)]


def truncated_in_cholesky_metric(weight, gram, rank):
    """The best product by the formula of SVD-LLM, which inverts: SVD_r(W L) L⁻¹ for L Lᵀ = G."""
    lower = np.linalg.cholesky(gram.numpy())
    left, singular, right = np.linalg.svd(weight.numpy() @ lower, full_matrices=False)
    best = (left[:, :rank] * singular[:rank]) @ right[:rank] @ np.linalg.inv(lower)
    return torch.from_numpy(best), singular**2


@pytest.mark.parametrize("shape", METRIC_SHAPES)
def test_in_a_metric_the_product_is_that_of_the_inverting_formula(shape):
    weight, gram = matrix(shape, 1), second_moment(inputs(shape[1]))
    for rank in range(1, min(shape) + 1):
        factors = factorize(weight, rank, second_moment=gram, damping=0)
        best, energy = truncated_in_cholesky_metric(weight, gram, rank)
        assert relative_error(product(factors), best) < 1e-9
        np.testing.assert_allclose(factors.energy, energy[:rank], rtol=1e-9)
        assert factors.nmse == pytest.approx(energy[rank:].sum() / energy.sum(), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 5), (4, 7), (5, 5)])
def test_no_other_product_of_that_rank_has_a_closer_output(shape, rank):
    weight, rows = matrix(shape, 3), inputs(shape[1], spread=0.5)
    factors = factorize(weight, rank, second_moment=second_moment(rows), damping=0)
    error = output_error(factors, weight, rows)
    # alternating least squares on W S finds Y = P Q S, any root S of G will do
    root = np.linalg.cholesky(second_moment(rows).numpy())
    rival = best_alternating_least_squares(weight.numpy() @ root, rank)
    assert error <= rival * (1 + 1e-9)
    assert rival == pytest.approx(error, rel=1e-3)  # the rival is no straw man
    generator = torch.Generator().manual_seed(rank)
    for size in (1e-3, 1e-1):
        for _ in range(20):
            up, down = (
                factor + size * torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
                for factor in (factors.up, factors.down)
            )
            assert float((rows @ (weight - up @ down).t()).square().sum(1).mean()) >= error
    plain = output_error(factorize(weight, rank), weight, rows)
    assert plain > error * 1.01  # the metric matters here


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 1000),
    count=st.integers(1, 12),
    damping=st.sampled_from([0.0, 1e-4, 1.0]),
    data=st.data(),
)
@settings(deadline=None, max_examples=80)
def test_leaving_out_components_costs_their_energy(rows, columns, seed, count, damping, data):
    weight, x = matrix((rows, columns), seed), inputs(columns, count, seed)
    factors = factorize(weight, second_moment=second_moment(x), damping=damping)
    energy, total = factors.energy, float((x @ weight.t()).square().sum(1).mean())
    assert relative_error(product(factors), weight) < 1e-13
    assert float(energy.sum()) == pytest.approx(total, rel=1e-10)
    assert (energy >= 0).all()
    assert (energy.diff() <= 0).all()
    full_rank = min(rows, columns)
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=full_rank, max_size=full_rank)))
    lost = float(energy[~kept].sum())
    assert output_error(factors, weight, x, kept) == pytest.approx(
        lost, rel=1e-9, abs=1e-10 * total
    )
    rank = data.draw(st.integers(1, full_rank))
    short = factorize(weight, rank, second_moment=second_moment(x), damping=damping)
    assert torch.equal(short.energy, energy[:rank])
    assert torch.equal(short.up, factors.up[:, :rank])
    assert short.nmse == pytest.approx(float(energy[rank:].sum()) / total, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)],
)
@pytest.mark.parametrize("shape", METRIC_SHAPES)
def test_full_rank_in_a_metric_reproduces_the_matrix(shape, dtype, tolerance):
    weight = matrix(shape).to(dtype)
    # hardly any row, and scales from 1 to 1e-6: as singular as it gets
    gram = second_moment(inputs(shape[1], count=2, spread=6))
    factors = factorize(weight, second_moment=gram.float())
    assert factors.down.shape == (min(shape), shape[1])
    assert factors.up.shape == (shape[0], min(shape))
    assert factors.down.dtype == factors.up.dtype == dtype
    assert factors.energy.dtype == torch.float64
    assert factors.down.is_contiguous()
    assert factors.up.is_contiguous()
    assert relative_error(product(factors), weight) < tolerance
    assert factors.nmse == 0


@pytest.mark.parametrize("shape", METRIC_SHAPES)
def test_components_in_a_metric_are_balanced_and_have_orthogonal_outputs(shape):
    factors = factorize(matrix(shape, 1), second_moment=second_moment(inputs(shape[1])))
    torch.testing.assert_close(factors.down.norm(dim=1), factors.up.norm(dim=0))
    gram = factors.up.t() @ factors.up
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", METRIC_SHAPES)
def test_in_the_metric_of_the_identity_it_is_the_plain_svd(shape):
    weight, rank = matrix(shape, 1), (min(shape) + 1) // 2
    plain = factorize(weight, rank)
    white = factorize(weight, rank, second_moment=torch.eye(shape[1]))
    assert relative_error(product(white), product(plain)) < 1e-10
    torch.testing.assert_close(white.energy, plain.energy)
    assert white.nmse == pytest.approx(plain.nmse, abs=1e-12)


@pytest.mark.parametrize("shape", METRIC_SHAPES)
def test_inputs_that_are_all_zero_leave_the_plain_svd(shape):
    weight, rank = matrix(shape, 1), (min(shape) + 1) // 2
    dead = factorize(weight, rank, second_moment=torch.zeros(shape[1], shape[1]))
    assert relative_error(product(dead), product(factorize(weight, rank))) < 1e-10
    assert not dead.energy.any()  # whatever is left out, the output stays zero
    assert dead.nmse == 0


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_directions_that_were_never_seen_are_ordered_as_without_a_metric(shape):
    weight = matrix(shape, 1)
    weight[:, 0] = 0
    gram = torch.zeros(shape[1], shape[1])
    gram[0, 0] = 1.0  # only a feature that the layer ignores
    dead = factorize(weight, 2, second_moment=gram)
    assert relative_error(product(dead), product(factorize(weight, 2))) < 1e-6


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_dead_input_costs_nothing(shape):
    weight, x = matrix(shape, 1), inputs(shape[1])
    x[:, 2] = 0
    alive = [column for column in range(shape[1]) if column != 2]
    rank = 2
    factors = factorize(weight, rank, second_moment=second_moment(x), damping=0)
    rest = factorize(weight[:, alive], rank, second_moment=second_moment(x[:, alive]), damping=0)
    torch.testing.assert_close(factors.energy, rest.energy)
    assert factors.nmse == pytest.approx(rest.nmse, rel=1e-9)
    assert output_error(factors, weight, x) == pytest.approx(
        output_error(rest, weight[:, alive], x[:, alive])
    )


@pytest.mark.parametrize("shape", [(5, 6), (6, 5), (9, 5)])
def test_with_fewer_rows_than_features_their_number_is_rank_enough(shape):
    weight, x = matrix(shape, 1), inputs(shape[1], count=2)
    factors = factorize(weight, 2, second_moment=second_moment(x), damping=0)
    assert factors.nmse < 1e-12
    scale = float((x @ weight.t()).square().sum(1).mean())
    assert output_error(factors, weight, x) < 1e-12 * scale


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_default_damping_costs_little(shape):
    weight, x = matrix(shape, 1), inputs(shape[1], spread=3)
    for rank in (1, 2, 3):
        best = factorize(weight, rank, second_moment=second_moment(x), damping=0).nmse
        assert best <= factorize(weight, rank, second_moment=second_moment(x)).nmse <= best + 1e-4


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_rounding_in_the_second_moment_is_forgiven(shape):
    weight, gram = matrix(shape, 1), second_moment(inputs(shape[1], count=2))
    exact = factorize(weight, 2, second_moment=gram)
    noise = matrix(gram.shape, 9) * 1e-7 * gram.abs().max()
    assert torch.linalg.eigvalsh(gram + (noise + noise.t()) / 2)[0] < 0
    rough = factorize(weight, 2, second_moment=gram + noise)
    assert relative_error(product(rough), product(exact)) < 1e-4
    assert (rough.energy >= 0).all()
    torch.testing.assert_close(rough.energy, exact.energy, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
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
@pytest.mark.parametrize("unit", [1.0, 1e30, 1e-30, 1e-300])
def test_in_a_metric_scale_changes_nothing_but_scale(shape, scale, dtype, unit):
    weight, gram = matrix(shape, seed=2), second_moment(inputs(shape[1]))
    reference = factorize(weight, 2, second_moment=gram)
    half = factorize((weight * scale).to(dtype), 2, second_moment=gram * unit)
    tolerance = 20 * torch.finfo(dtype).eps
    assert relative_error(product(half) / scale, product(reference)) < 10 * tolerance
    assert half.nmse == pytest.approx(reference.nmse, rel=10 * tolerance)
    if 1e-290 < scale * unit * scale < 1e290:  # as float64 can say it
        wanted = reference.energy * (scale * unit * scale)
        torch.testing.assert_close(half.energy, wanted, rtol=10 * tolerance, atol=0)


@pytest.mark.parametrize("shape", METRIC_SHAPES)
def test_a_zero_matrix_in_a_metric_has_zero_factors_and_no_error(shape):
    factors = factorize(torch.zeros(shape), 1, second_moment=second_moment(inputs(shape[1])))
    assert not factors.down.any()
    assert not factors.up.any()
    assert not factors.energy.any()
    assert factors.nmse == 0


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", [(6, 5), (5, 6)])
def test_in_a_metric_a_rank_deficient_matrix_needs_only_its_rank(shape, rank):
    weight = matrix((shape[0], rank), 4) @ matrix((rank, shape[1]), 5)
    gram = second_moment(inputs(shape[1]))
    factors = factorize(weight, rank, second_moment=gram)
    assert factors.nmse == 0
    assert relative_error(product(factors), weight) < 1e-13
    full = factorize(weight, second_moment=gram)
    assert full.up.norm(dim=0)[rank:].max() < 1e-6  # the root of a rounding error
    assert not full.energy[rank:].any()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_with_the_bias_shifted_the_covariance_tells_the_whole_error(shape):
    weight, x = matrix(shape, 1), inputs(shape[1], mean=3.0)
    mean = x.mean(0)
    factors = factorize(weight, second_moment=second_moment(x - mean), damping=0)
    removed = weight - factors.up[:, :2] @ factors.down[:2]
    shift = bias_shift(removed, mean)
    assert shift.dtype == torch.float64
    error = float((x @ removed.t() - shift).square().sum(1).mean())
    assert error == pytest.approx(float(factors.energy[2:].sum()), rel=1e-9)
    raw = factorize(weight, 2, second_moment=second_moment(x), damping=0)
    assert error < output_error(raw, weight, x)


def test_weight_and_second_moment_are_left_alone():
    weight, gram = torch.nn.Parameter(matrix((4, 3))), second_moment(inputs(3))
    before = weight.detach().clone(), gram.clone()
    factors = factorize(weight, second_moment=gram)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
    assert not any(x.requires_grad for x in (factors.down, factors.up, factors.energy))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_second_moment_that_is_not_finite_is_refused(value):
    gram = torch.eye(3)
    gram[1, 2] = value
    with pytest.raises(LowRankError, match="second moment holds values that are not finite"):
        factorize(torch.ones(4, 3), second_moment=gram)


@pytest.mark.parametrize("shape", [(3,), (4, 4), (3, 4), (1, 3, 3)])
def test_a_second_moment_of_another_shape_is_refused(shape):
    with pytest.raises(LowRankError, match=r"must have shape \(3, 3\), got"):
        factorize(torch.ones(4, 3), second_moment=torch.ones(shape))


@pytest.mark.parametrize(
    "gram",
    [
        [[1.0, 0.5], [0.1, 1.0]],
        [[1.0, 0.0], [0.0, -0.5]],
        [[-1.0, 0.0], [0.0, -1.0]],
        [[0.0, 1.0], [1.0, 0.0]],
    ],
)
def test_what_is_no_second_moment_is_refused(gram):
    with pytest.raises(LowRankError, match="symmetric and positive semi-definite"):
        factorize(torch.ones(4, 2), second_moment=torch.tensor(gram))


@pytest.mark.parametrize("damping", [-1e-4, math.nan, math.inf])
def test_a_damping_out_of_range_is_refused(damping):
    with pytest.raises(LowRankError, match=f"damping >= 0 must hold, got {damping}"):
        factorize(torch.ones(4, 2), second_moment=torch.eye(2), damping=damping)

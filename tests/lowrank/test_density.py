from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank import (
    DensityError,
    GateConfig,
    LayerShape,
    expected_density,
    realized_density,
)
from lowrank.density import budget, check_density
from lowrank.gate import open_probability, sample

sizes = st.integers(1, 40)


@given(in_features=sizes, out_features=sizes)
@settings(deadline=None)
def test_break_even_rank_is_the_last_at_which_factors_are_smaller(in_features, out_features):
    shape = LayerShape(in_features, out_features)
    smaller = [
        rank
        for rank in range(in_features * out_features + 1)
        if rank * in_features + out_features * rank < in_features * out_features
    ]
    assert shape.break_even_rank == max(smaller)
    assert shape.break_even_rank < shape.full_rank


@given(in_features=sizes, out_features=sizes, rank=st.integers(0, 40))
@settings(deadline=None)
def test_a_layer_is_stored_in_its_cheaper_form(in_features, out_features, rank):
    shape = LayerShape(in_features, out_features)
    dense = torch.empty(out_features, in_features).numel()
    factors = torch.empty(rank, in_features).numel() + torch.empty(out_features, rank).numel()
    assert shape.num_parameters(rank) == (factors if factors < dense else dense)
    assert (shape.num_parameters(rank) < dense) == (rank <= shape.break_even_rank)


@given(total=st.integers(1, 100_000), thousandths=st.integers(1, 1000))
@settings(deadline=None, max_examples=300)
def test_a_budget_buys_what_it_does_in_exact_arithmetic(total, thousandths):
    exact = Fraction(thousandths, 1000) * total
    assert math.floor(budget([LayerShape(1, total)], thousandths / 1000)) == math.floor(exact)


def test_a_budget_is_that_of_all_layers_together():
    assert budget([LayerShape(1, 5), LayerShape(3, 5)], 0.3) == pytest.approx(6, rel=1e-11)


@pytest.mark.parametrize("density", [0, -0.1, 1.0001, math.nan, math.inf, "0.5", None])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(DensityError, match=r"0 < density <= 1 must hold, got"):
        check_density(density)


@pytest.mark.parametrize("density", [1e-9, 0.3, 1, 1.0])
def test_a_density_in_range_is_returned(density):
    assert check_density(density) == density


def test_realized_density_by_hand():
    shapes = {
        "low": LayerShape(4, 6),
        "dense": LayerShape(10, 10),
        "row": LayerShape(1, 8),
    }
    # 2 (4 + 6), then min(100, 9 * 20), then min(8, 9)
    assert realized_density({"low": 2, "dense": 9, "row": 1}, shapes) == (20 + 100 + 8) / 132


@pytest.mark.parametrize("temperature", [1 / 3, 2 / 3, 1.0, 2.0])
@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.1), (-0.3, 1.6), (-0.02, 1.02)])
def test_expected_density_is_the_mean_of_sampled_densities(temperature, low, high):
    config = GateConfig(temperature=temperature, stretch_low=low, stretch_high=high)
    # both layers stay below break-even in every draw
    shapes = {"a": LayerShape(40, 60), "b": LayerShape(25, 25)}
    generator = torch.Generator().manual_seed(7)
    log_alpha = {
        "a": config.open_shift - 2 + torch.randn(40, generator=generator),
        "b": config.open_shift - 3 + torch.randn(25, generator=generator),
    }
    draws = 20_000
    stored = np.zeros(draws)
    for name, shape in shapes.items():
        uniform = torch.rand(draws, shape.full_rank, generator=generator)
        num_open = (sample(log_alpha[name], uniform, config) > 0).sum(dim=1).numpy()
        assert num_open.max() <= shape.break_even_rank
        stored += num_open * (shape.in_features + shape.out_features)
    densities = stored / (40 * 60 + 25 * 25)
    open_prob = {name: open_probability(value, config) for name, value in log_alpha.items()}
    expected = expected_density(open_prob, shapes).item()
    deviation = densities.std() / math.sqrt(draws)
    assert expected == pytest.approx(densities.mean(), abs=4 * deviation)
    assert deviation < 0.01 * expected


def test_each_layer_is_charged_at_most_its_dense_size():
    shapes = {"open": LayerShape(6, 6), "shut": LayerShape(6, 6)}
    open_prob = {"open": torch.ones(6), "shut": torch.zeros(6)}
    assert expected_density(open_prob, shapes).item() == 0.5


@pytest.mark.parametrize("value", [0.05, 0.99])
def test_the_gradient_is_that_of_the_factors_on_both_sides_of_break_even(value):
    shapes = {"a": LayerShape(6, 10), "b": LayerShape(8, 5)}
    open_prob = {"a": torch.full((6,), value), "b": torch.full((5,), value)}
    for prob in open_prob.values():
        prob.requires_grad_()
    density = expected_density(open_prob, shapes)
    assert density.item() == pytest.approx(min(1.0, value * (6 * 16 + 5 * 13) / 100))
    density.backward()
    torch.testing.assert_close(open_prob["a"].grad, torch.full((6,), 16 / 100))
    torch.testing.assert_close(open_prob["b"].grad, torch.full((5,), 13 / 100))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counting_is_float32_whatever_the_gates_are(dtype):
    # in float16 the count overflows, in bfloat16 it is off by ranks
    shapes = {"a": LayerShape(400, 400)}
    open_prob = torch.full((400,), 0.25).to(dtype)
    density = expected_density({"a": open_prob}, shapes)
    assert density.dtype == torch.float32
    assert density.item() == pytest.approx(400 * 0.25 * 800 / 400**2, rel=1e-6)
    skewed = torch.full((400,), 0.30078125, dtype=dtype)  # exact in both
    assert expected_density({"a": skewed}, shapes).item() == pytest.approx(0.6015625, rel=1e-6)

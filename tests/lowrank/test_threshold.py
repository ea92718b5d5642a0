"""Gates that meet the budget at every step, against optimizers and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lowrank.density import LinearCost
from lowrank.projection import project
from lowrank.threshold import ThresholdGate, solve_threshold, tangent_gradients

STEPS = 40
HOLD = 30
"""First step at the target, where scores come to rest."""


def linear(scores: dict[str, torch.Tensor], unit_costs: dict[str, float]) -> dict[str, LinearCost]:
    """The cost of units that cost the same each."""
    return {name: LinearCost(len(score), unit_costs[name]) for name, score in scores.items()}


# --- the threshold


def gates_of(scores):
    gates = {name: ThresholdGate(len(score)) for name, score in scores.items()}
    with torch.no_grad():
        for name, gate in gates.items():
            gate.parameter.copy_(scores[name])
    return gates


def solved(scores, costs, allowed, temperature):
    """Gate values, float64 per layer, by way of the module."""
    gates = gates_of(scores)
    scores = {name: gate.parameter for name, gate in gates.items()}
    threshold = solve_threshold(scores, linear(scores, costs), allowed, temperature)
    for gate in gates.values():
        gate.place(threshold, temperature)
    return {name: gate.value() for name, gate in gates.items()}


def total_cost(values, costs):
    return math.fsum(costs[name] * float(value.sum()) for name, value in values.items())


# a coarse grid, so that ties are the rule
score_lists = st.lists(
    st.integers(-4, 4).map(lambda n: n / 4) | st.floats(-10, 10, width=32), min_size=1, max_size=8
)
layers = st.lists(st.tuples(score_lists, st.floats(0.01, 1000)), min_size=1, max_size=4)


@given(
    layers=layers,
    share=st.floats(1e-9, 1.0) | st.sampled_from([0.5, 1.0]),
    temperature=st.floats(-4, 1).map(lambda power: 10.0**power),
)
@settings(deadline=None, max_examples=200)
def test_what_is_spent_is_what_is_allowed(layers, share, temperature):
    scores = {str(n): torch.tensor(score) for n, (score, _) in enumerate(layers)}
    costs = {str(n): cost for n, (_, cost) in enumerate(layers)}
    total = sum(len(scores[name]) * cost for name, cost in costs.items())
    values = solved(scores, costs, share * total, temperature)
    assert all(value.dtype == torch.float64 for value in values.values())
    assert total_cost(values, costs) == pytest.approx(share * total, rel=0, abs=1e-9 * total)
    flat, gate = torch.cat(list(scores.values())), torch.cat(list(values.values()))
    order = flat.argsort()
    assert (gate[order].diff() >= 0).all()
    assert all(gate[flat == score].unique().numel() == 1 for score in flat.unique())


@pytest.mark.parametrize("temperature", [1e-5, 0.05, 3.0])
def test_nothing_or_everything_may_be_allowed(temperature):
    scores = {"a": torch.tensor([0.9, 0.1, -7.0]), "b": torch.tensor([30.0, 0.1])}
    costs = {"a": 2.0, "b": 5.0}
    for allowed in (16.0, 17.0, math.inf):
        assert all((v == 1).all() for v in solved(scores, costs, allowed, temperature).values())
    for allowed in (1e-15, 0.0):
        assert all((v < 1e-14).all() for v in solved(scores, costs, allowed, temperature).values())


def test_a_layer_without_gates_spends_nothing():
    scores = {"a": torch.tensor([0.9, 0.1]), "none": torch.empty(0), "b": torch.tensor([0.5])}
    scores["last"] = torch.empty(0)
    costs = linear(scores, dict.fromkeys(scores, 2.0))
    threshold = solve_threshold(scores, costs, 3.0, 0.1)
    gates = torch.sigmoid((torch.tensor([0.9, 0.1, 0.5]).double() - threshold) / 0.1)
    assert 2.0 * float(gates.sum()) == pytest.approx(3.0, abs=1e-9)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_scores_that_diverged_stop_nothing_here(broken):
    """The loss is not finite either, and training ends with that for a reason."""
    scores = {"a": torch.tensor([0.9, broken])}
    assert math.isnan(solve_threshold(scores, linear(scores, {"a": 1.0}), 1.0, 0.1))


def random_problem(seed, sizes=(4, 3)):
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in zip("ab", sizes, strict=True)
    }
    return scores, {"a": 3.0, "b": 7.0}


def entropy(s):
    s = np.clip(s, 1e-300, 1)
    return -s * np.log(s)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("costs", [{"a": 3.0, "b": 7.0}, {"a": 1.0, "b": 1.0}])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gates_are_the_best_that_the_budget_allows(seed, costs, temperature):
    scores, _ = random_problem(seed)
    a = torch.cat(list(scores.values())).numpy()
    c = np.repeat([costs["a"], costs["b"]], [4, 3])
    allowed = 0.4 * c.sum()

    def loss(s):
        return -(c * (a * s + temperature * (entropy(s) + entropy(1 - s)))).sum()

    best = minimize(
        loss,
        np.full(7, 0.4),
        method="SLSQP",
        bounds=[(1e-9, 1 - 1e-9)] * 7,
        constraints={"type": "eq", "fun": lambda s: (c * s).sum() - allowed},
        options={"ftol": 1e-12, "maxiter": 300},
    )
    threshold = solve_threshold(scores, linear(scores, costs), allowed, temperature)
    found = 1 / (1 + np.exp(-(a - threshold) / temperature))
    assert best.success
    assert loss(found) <= best.fun + 1e-9
    np.testing.assert_allclose(found, best.x, atol=2e-4)


@pytest.mark.parametrize("allowed", [1.0, 9.0, 17.5, 26.0, 32.0])
def test_a_cold_gate_is_the_fractional_knapsack(allowed):
    scores, costs = random_problem(3)
    a, c = torch.cat(list(scores.values())), torch.tensor([3.0] * 4 + [7.0] * 3).double()
    wanted, left = torch.zeros(7).double(), allowed
    for index in a.argsort(descending=True).tolist():
        wanted[index] = min(1.0, left / c[index])
        left -= float(wanted[index] * c[index])
    threshold = solve_threshold(scores, linear(scores, costs), allowed, 1e-6)
    torch.testing.assert_close(torch.sigmoid((a - threshold) / 1e-6), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_cold_gate_of_equal_costs_is_the_projection(count):
    generator = torch.Generator().manual_seed(count)
    scores = {name: torch.randn(5, generator=generator) for name in "ab"}
    values = solved(scores, dict.fromkeys(scores, 3.0), count * 3.0, 1e-5)
    costs = {name: LinearCost(5, 3.0) for name in scores}
    keep = project(scores, costs, count / 10, floors=0).keep
    for name, value in values.items():
        torch.testing.assert_close(value, keep[name].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.01, 1e-3])
@pytest.mark.parametrize("share", [0.15, 0.5, 0.83])
def test_untrained_gates_prune_all_layers_alike(share, temperature):
    gates = [ThresholdGate(size) for size in (5, 16, 64)]
    scores = {str(len(gate.parameter)): gate.parameter for gate in gates}
    costs = {"5": 9.0, "16": 1.0, "64": 4.0}
    total = sum(int(name) * cost for name, cost in costs.items())
    threshold = solve_threshold(scores, linear(scores, costs), share * total, temperature)
    for gate in gates:
        gate.place(threshold, temperature)
        # a midpoint rule for one and the same function, with that many nodes
        size = len(gate.parameter)
        assert float(gate.value().sum()) == pytest.approx(share * size, abs=1)
    kept = {len(gate.parameter): float(gate.value().mean()) for gate in gates}
    assert kept[64] == pytest.approx(kept[16], abs=1 / 16)


# --- gradients along the budget


def tangents(gradients, slopes, costs):
    """Layer by layer."""
    sizes = [len(gradient) for gradient in gradients.values()]
    unit_cost = torch.cat([torch.full((len(g),), costs[n]).double() for n, g in gradients.items()])
    along, price = tangent_gradients(
        torch.cat(list(gradients.values())), torch.cat(list(slopes.values())), unit_cost
    )
    return dict(zip(gradients, along.split(sizes), strict=True)), float(price)


def smooth_loss(gates):
    s = torch.cat(list(gates.values()))
    weight = torch.linspace(-1, 2, len(s), dtype=torch.float64)
    return (weight * torch.sin(3 * s)).sum() + (weight * s).sum() ** 2


@pytest.mark.parametrize("temperature", [0.2, 1.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_are_those_with_the_threshold_solved_again(seed, temperature):
    scores, costs = random_problem(seed)
    allowed = 0.45 * (3.0 * 4 + 7.0 * 3)

    def gates(scores, allowed=allowed):
        threshold = solve_threshold(scores, linear(scores, costs), allowed, temperature)
        return {n: torch.sigmoid((a - threshold) / temperature) for n, a in scores.items()}

    leaves = {name: score.clone().requires_grad_() for name, score in scores.items()}
    values = gates(leaves)  # solving passes no gradient
    smooth_loss(values).backward()
    slopes = {n: (s * (1 - s)).detach() / temperature for n, s in values.items()}
    found, price = tangents({n: a.grad for n, a in leaves.items()}, slopes, costs)

    step = 1e-5
    for name, score in scores.items():
        for index in range(len(score)):
            ends = []
            for sign in (1, -1):
                moved = {n: a.clone() for n, a in scores.items()}
                moved[name][index] += sign * step
                ends.append(float(smooth_loss(gates(moved))))
            wanted = (ends[0] - ends[1]) / (2 * step)
            assert float(found[name][index]) == pytest.approx(wanted, rel=1e-6, abs=1e-8)
    more, less = (float(smooth_loss(gates(scores, allowed + sign * step))) for sign in (1, -1))
    assert -price == pytest.approx((more - less) / (2 * step), rel=1e-6, abs=1e-8)
    # all scores rising together changes nothing
    total = sum(float(gradient.sum()) for gradient in found.values())
    assert total == pytest.approx(0, abs=1e-12)
    largest = max(float(gradient.abs().max()) for gradient in found.values())
    assert largest > 1e-2


def test_gates_that_are_all_saturated_have_neither_gradient_nor_price():
    zeros = {"a": torch.zeros(3).double()}
    found, price = tangents(zeros, zeros, {"a": 2.0})
    assert price == 0
    assert found["a"].tolist() == [0, 0, 0]


# --- the gate as a module


def test_training_evaluation_and_folding_use_the_same_numbers():
    gate = ThresholdGate(6)
    gate.place(0.4, 0.1)
    assert torch.equal(gate.train()(), gate.eval()())
    assert torch.equal(gate.kept(), gate())
    assert gate().dtype == torch.float32
    torch.testing.assert_close(gate.value(), gate().double(), rtol=0, atol=1e-6)
    assert not gate.value().requires_grad
    assert ((gate() > 0.01) & (gate() < 0.99)).any()


def test_a_fresh_gate_is_open():
    assert ThresholdGate(7).value().tolist() == [1.0] * 7
    assert ThresholdGate(7)().tolist() == [1.0] * 7


def test_a_cold_gate_at_the_threshold_is_what_is_folded_in():
    """A threshold rounded to float32 would move it by up to 3e-8 / T / 4, here 7e-4."""
    gate = ThresholdGate(64)
    middle = float(gate.parameter.detach()[20])
    for offset in torch.linspace(-3e-5, 3e-5, 41, dtype=torch.float64).tolist():
        gate.place(middle + offset, 1e-5)
        assert torch.allclose(gate().double(), gate.value(), rtol=0, atol=1e-6)

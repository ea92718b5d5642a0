from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank import AugmentedLagrangian, LowRankError

violations = st.lists(st.integers(-10, 10).map(lambda n: n / 10), min_size=1, max_size=40)


def after(steps, learning_rate=0.1):
    """A Lagrangian that has seen these violations of a target of 0.5."""
    lagrangian = AugmentedLagrangian(learning_rate)
    for violation in steps:
        lagrangian.ascend(0.5 + violation, 0.5)
    return lagrangian


def multipliers(lagrangian):
    return lagrangian.lambda_linear, lagrangian.lambda_quadratic


def adam_ascent(gradients, learning_rate, beta1=0.9, beta2=0.999, eps=1e-8):
    """Kingma and Ba 2015, algorithm 1, upwards."""
    value = mean = square = 0.0
    for step, gradient in enumerate(gradients, 1):
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        corrected = math.sqrt(square / (1 - beta2**step)) + eps
        value += learning_rate * (mean / (1 - beta1**step)) / corrected
    return value


def test_the_multipliers_start_at_zero_and_so_does_the_penalty():
    lagrangian = AugmentedLagrangian(0.1)
    assert multipliers(lagrangian) == (0, 0)
    assert lagrangian.penalty(torch.tensor(0.9), 0.2).item() == 0


@pytest.mark.parametrize("density", [0.1, 0.3, 0.8])
def test_the_penalty_is_that_of_the_paper(density):
    lagrangian = after([0.3, 0.2, 0.25])
    linear, quadratic = multipliers(lagrangian)
    assert linear > 0
    assert quadratic > 0
    s = torch.tensor(density, requires_grad=True)
    penalty = lagrangian.penalty(s, 0.3)
    violation = density - 0.3
    assert penalty.item() == pytest.approx(linear * violation + quadratic * violation**2, abs=1e-7)
    penalty.backward()
    assert s.grad.item() == pytest.approx(linear + 2 * quadratic * violation, abs=1e-6)


def test_the_penalty_is_float32_and_reaches_only_the_density():
    lagrangian = after([0.3])
    s = torch.tensor(0.8125, dtype=torch.bfloat16, requires_grad=True)
    penalty = lagrangian.penalty(s, 0.3)
    assert penalty.dtype == torch.float32
    before = multipliers(lagrangian)
    penalty.backward()
    assert lagrangian._lambda.grad is not None  # that of the ascent, not of this pass
    torch.testing.assert_close(lagrangian._lambda.grad, torch.tensor([0.3, 0.09]))
    assert multipliers(lagrangian) == before


@pytest.mark.parametrize(("violation", "sign"), [(0.4, 1), (-0.4, -1)])
def test_the_linear_multiplier_takes_the_sign_of_the_violation(violation, sign):
    linear, quadratic = multipliers(after([violation] * 3, 0.05))
    assert linear == pytest.approx(sign * 0.15, rel=1e-4)  # Adam: one rate per step
    assert quadratic == pytest.approx(0.15, rel=1e-4)


def test_nothing_moves_on_target():
    assert multipliers(after([0.0, 0.0])) == (0, 0)


@given(steps=violations, rate=st.sampled_from([0.001, 0.1, 3.0]))
@settings(deadline=None)
def test_the_ascent_is_adams(steps, rate):
    linear, quadratic = multipliers(after(steps, rate))
    seen = [(0.5 + v) - 0.5 for v in steps]
    assert linear == pytest.approx(adam_ascent(seen, rate), rel=1e-3, abs=1e-4 * rate)
    wanted = adam_ascent([v * v for v in seen], rate)
    assert quadratic == pytest.approx(wanted, rel=1e-3, abs=1e-4 * rate)


@given(steps=violations, rate=st.sampled_from([0.001, 0.1, 3.0]))
@settings(deadline=None)
def test_the_quadratic_multiplier_never_falls(steps, rate):
    lagrangian = AugmentedLagrangian(rate)
    last = 0.0
    for violation in steps:
        lagrangian.ascend(0.5 + violation, 0.5)
        assert lagrangian.lambda_quadratic >= last
        last = lagrangian.lambda_quadratic


@given(before=st.one_of(st.just([]), violations), later=violations)
@settings(deadline=None)
def test_a_restored_lagrangian_continues_as_if_never_interrupted(before, later):
    original, restored = after(before), AugmentedLagrangian(0.1)
    restored.ascend(0.9, 0.1)  # a past that the state must replace
    restored.load_state_dict(original.state_dict())
    assert multipliers(restored) == multipliers(original)
    for violation in later:
        original.ascend(0.5 + violation, 0.5)
        restored.ascend(0.5 + violation, 0.5)
        assert multipliers(restored) == multipliers(original)


def test_the_state_is_a_copy_in_both_directions():
    original = after([0.3])
    state = original.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    restored = AugmentedLagrangian(0.1)
    restored.load_state_dict(state)
    original.ascend(0.9, 0.5)
    restored.ascend(0.9, 0.5)
    for name, value in state.items():
        assert torch.equal(value, kept[name])


@pytest.mark.parametrize("rate", [0, -0.1, math.nan])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(LowRankError, match="penalty learning rate > 0"):
        AugmentedLagrangian(rate)

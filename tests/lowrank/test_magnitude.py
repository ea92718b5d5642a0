"""The plain diagonal of FLOP-AGP and its schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lowrank.magnitude import MagnitudeGate, cubic_density


def test_the_schedule_by_hand():
    # Zhu and Gupta in sparsities: s = s_f + (0 - s_f) (1 - p)^3, at p = 0, 1/4, 1/2, 1
    assert cubic_density(0.0, 0.2) == 1
    assert cubic_density(0.25, 0.2) == pytest.approx(1 - 0.8 * (1 - 27 / 64))
    assert cubic_density(0.5, 0.2) == pytest.approx(1 - 0.8 * (1 - 1 / 8))
    assert cubic_density(1.0, 0.2) == 0.2


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_the_schedule_falls_fast_first_and_stays_at_its_ends(density):
    values = [cubic_density(step / 20, density) for step in range(-3, 26)]
    assert values[:4] == [1] * 4
    assert values[23:] == [density] * 6
    falls = [a - b for a, b in pairwise(values[3:24])]
    assert all(a >= b for a, b in pairwise(falls))


def test_masked_entries_multiply_by_zero_get_no_gradient_and_can_come_back():
    gate = MagnitudeGate(4)
    with torch.no_grad():
        gate.parameter.copy_(torch.tensor([0.5, -2.0, 3.0, 1.0]))
    gate.set_mask(torch.tensor([True, True, False, False]))
    assert gate().tolist() == [0.5, -2, 0, 0]
    assert gate.value().tolist() == [0.5, -2, 0, 0]
    assert gate.kept().tolist() == [1, 1, 0, 0]
    gate().square().sum().backward()
    assert gate.parameter.grad.tolist() == [1, -4, 0, 0]
    gate.set_mask(torch.ones(4, dtype=torch.bool))
    assert gate.value().tolist() == [0.5, -2, 3, 1]


def test_the_mask_is_saved_with_the_model():
    gate, other = MagnitudeGate(2), MagnitudeGate(2)
    gate.set_mask(torch.tensor([False, True]))
    other.load_state_dict(gate.state_dict())
    assert other.value().tolist() == [0, 1]

"""The plain diagonal of FLOP-AGP, its schedule, and what a component's magnitude is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lowrank.magnitude import MagnitudeGate, cubic_density
from tests.lowrank.every_method import assert_same, prune, toy


def silent_model():
    model = toy()
    with torch.no_grad():
        model[0].weight.zero_()
    return model


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


@pytest.mark.parametrize(
    ("kind", "greedy"),
    [("flop-agp", "fixed greedy svd"), ("flop-agp covariance", "fixed greedy")],
)
def test_before_training_components_are_chosen_by_their_outputs(kind, greedy):
    # the norms of a covariance start's factors say little: where inputs vary little, weights are
    # large for nothing
    magnitudes, energies = prune(kind).control, prune(greedy).control
    for name, scores in magnitudes.scores().items():
        torch.testing.assert_close(scores.square(), energies.scores()[name])
    assert_same(magnitudes.project().keep, energies.project().keep)


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_what_grows_in_training_counts_wherever_it_grew(part):
    control = prune("flop-agp covariance").control
    before = control.scores()
    layer = control.layers["0"]
    with torch.no_grad():
        if part == "gate":
            layer.gate.parameter[1] *= -3
        elif part == "up":
            layer.up[:, 1] *= -3
        else:
            layer.down[1] *= -3
    before["0"][1] *= 3
    after = control.scores()
    for name in before:
        torch.testing.assert_close(after[name], before[name])


def test_what_inputs_make_of_components_is_part_of_the_state():
    control, other = prune("flop-agp covariance").control, prune("flop-agp").control
    other.load_state_dict(control.state_dict())
    for layer, mine in zip(other.layers.values(), control.layers.values(), strict=True):
        layer.load_state_dict(mine.state_dict())
    assert_same(other.scores(), control.scores())


def test_a_component_of_nothing_has_no_magnitude():
    pruner = prune("flop-agp covariance", silent_model())
    scores = pruner.control.scores()["0"]
    assert scores.tolist() == [0] * len(scores)
    assert not pruner.control.project().keep["0"][1:].any()

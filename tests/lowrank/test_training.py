"""Whole runs on a problem whose answer has low rank."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from lowrank import FlopL0, Pruner
from lowrank.counting import num_matrix_parameters

WIDTH, TRUE_RANK, LAYERS = 24, 3, ["0", "2", "4"]
COMPONENT = 2 * WIDTH
TOTAL = len(LAYERS) * WIDTH * WIDTH


@cache
def problem():
    """Inputs, outputs and weights of three tanh layers of rank 3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, WIDTH, generator=generator)
    y, weights = x, []
    for _ in LAYERS:
        left = torch.randn(WIDTH, TRUE_RANK, generator=generator)
        right = torch.randn(TRUE_RANK, WIDTH, generator=generator)
        weights.append(left @ right / (WIDTH * TRUE_RANK) ** 0.5)
        y = torch.tanh(y @ weights[-1].t())
    return x, y, weights


def run(density, penalty_lr):
    """Prune a full-rank neighbour of the true model; returns (expected, loss, small)."""
    x, y, weights = problem()
    torch.manual_seed(1)
    model = nn.Sequential(
        *(layer for _ in LAYERS for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh()))
    )
    with torch.no_grad():
        for name, weight in zip(LAYERS, weights, strict=True):
            noise = 0.02 * torch.randn(weight.shape)
            model.get_submodule(name).weight.copy_(weight + noise)
    method = FlopL0(density=density, gated_steps=300, anneal_fraction=2 / 3, penalty_lr=penalty_lr)
    pruner = Pruner(model, method)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(3e-3))
    for _ in range(method.gated_steps):
        loss = (pruner.model(x) - y).square().mean() + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    expected = pruner.expected_density().item()
    small = pruner.finish().eval()
    with torch.no_grad():
        return expected, (small(x) - y).square().mean().item(), small


@pytest.mark.parametrize("penalty_lr", [0.01, 0.1, 1.0])
def test_the_target_density_is_reached_over_two_orders_of_penalty_rate(penalty_lr):
    expected, _, small = run(0.5, penalty_lr)
    assert expected == pytest.approx(0.5, abs=0.05)
    stored = num_matrix_parameters(small, LAYERS)
    assert stored <= 0.5 * TOTAL < stored + COMPONENT


def test_the_true_components_are_found():
    # a patient rate: at 0.03 and above the gates fall together before they can be told apart
    _, loss, small = run(TRUE_RANK * 3 * COMPONENT / TOTAL, 0.003)
    assert [small.get_submodule(name).rank for name in LAYERS] == [3, 3, 3]
    _, y, _ = problem()
    assert loss < 0.02 * y.square().mean().item()

"""Stopping, saving and going on."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load, save

from lowrank import FlopL0, Pruner
from tests.lowrank import batch, mlp, noises


def train(pruner, optimizer, first, last):
    for step in range(first, last):
        x, y = batch(seed=step, dtype=torch.float32)
        loss = (pruner.model(x) - y).square().mean() + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()


def fresh_run(seed):
    # the same seed of the noise, but weights that the checkpoint must replace
    pruner = Pruner(mlp(seed), FlopL0(density=0.4, gated_steps=12, anneal_fraction=0.5), seed=11)
    return pruner, torch.optim.AdamW(pruner.parameter_groups(1e-2))


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(stop):
    straight, optimizer = fresh_run(seed=0)
    train(straight, optimizer, 0, 12)

    first, optimizer = fresh_run(seed=0)
    train(first, optimizer, 0, stop)
    model_state = load(save(first.model.state_dict()))
    pruner_state = load(save(first.state_dict()))
    optimizer_state = copy.deepcopy(optimizer.state_dict())

    second, optimizer = fresh_run(seed=1)
    second.model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(pruner_state)
    train(second, optimizer, stop, 12)

    assert second.step_index == straight.step_index == 12
    for name, value in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    for name, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert torch.equal(noises(second), noises(straight))
    small, same = straight.finish().state_dict(), second.finish().state_dict()
    assert list(small) == list(same)
    assert all(torch.equal(small[name], same[name]) for name in small)

"""Stopping, saving and going on."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load, save

from lowrank import FlopL0, LowRankError, Pruner
from tests.lowrank import batch, mlp, noises
from tests.lowrank.every_method import METHODS, assert_same, optimizer_of, prune, toy, train


def train_mlp(pruner, optimizer, first, last):
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
    train_mlp(straight, optimizer, 0, 12)

    first, optimizer = fresh_run(seed=0)
    train_mlp(first, optimizer, 0, stop)
    model_state = load(save(first.model.state_dict()))
    pruner_state = load(save(first.state_dict()))
    optimizer_state = copy.deepcopy(optimizer.state_dict())

    second, optimizer = fresh_run(seed=1)
    second.model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(pruner_state)
    train_mlp(second, optimizer, stop, 12)

    assert second.step_index == straight.step_index == 12
    for name, value in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    for name, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert torch.equal(noises(second), noises(straight))
    small, same = straight.finish().state_dict(), second.finish().state_dict()
    assert list(small) == list(same)
    assert all(torch.equal(small[name], same[name]) for name in small)


@pytest.mark.parametrize("kind", METHODS)
def test_the_state_of_a_finished_pruner_restores_the_structure(kind):
    """With every method, into a model with other weights."""
    done = prune(kind)
    train(done, optimizer_of(done))
    small = done.finish()
    state = load(save(done.state_dict()))
    fresh = prune(kind, model=toy(seed=3), seed=11)
    fresh.load_state_dict(state)
    assert fresh.finished
    assert fresh.step_index == done.step_index
    fresh.model.load_state_dict(small.state_dict(), strict=True)
    x, _ = batch(rows=4, width=8, dtype=torch.float32)
    assert torch.equal(fresh.model(x), small(x))
    groups = [[p.shape for p in g["params"]] for g in fresh.parameter_groups(1e-3)]
    assert groups == [[p.shape for p in g["params"]] for g in done.parameter_groups(1e-3)]
    every = {id(p) for group in fresh.parameter_groups(1e-3) for p in group["params"]}
    assert every == {id(p) for p in fresh.model.parameters()}
    fresh.load_state_dict(state)  # once more changes nothing
    assert_same(fresh.model.state_dict(), small.state_dict())


def test_a_state_that_does_not_fit_is_refused():
    done, gated = prune("adaptive svd"), prune("adaptive svd")
    done.finish()
    with pytest.raises(LowRankError, match="is finished, and the state is not that"):
        done.load_state_dict(gated.state_dict())
    other = prune("agp column")
    other.finish()
    with pytest.raises(LowRankError, match=r"8 units of layer '0', the pruner 4: it belongs"):
        gated.load_state_dict(other.state_dict())
    assert not gated.finished
    state = done.state_dict()
    del state["keep.2"]
    with pytest.raises(LowRankError, match="0 units of layer '2'"):
        gated.load_state_dict(state)


def test_states_may_be_loaded_in_either_order():
    """The threshold is solved from scores that come with the model."""
    first = prune("adaptive svd")
    train(first, optimizer_of(first), 0, 5)
    model_state = load(save(first.model.state_dict()))
    state = load(save(first.state_dict()))
    second, third = prune("adaptive svd", toy(seed=4)), prune("adaptive svd", toy(seed=4))
    second.model.load_state_dict(model_state)
    second.load_state_dict(state)
    third.load_state_dict(state)
    third.model.load_state_dict(model_state)
    for pruner in (second, third):
        for name, layer in pruner.layers.items():
            assert torch.equal(layer.gate(), first.layers[name].gate())

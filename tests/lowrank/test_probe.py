"""Looking in from outside, and leaving no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank.probe import evaluating, watching


class Shared(nn.Module):
    """One layer used twice, the second time by keyword; another one once."""

    def __init__(self):
        super().__init__()
        self.twice, self.once = nn.Linear(3, 3), nn.Linear(3, 2)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x):
        return self.once(self.twice(input=self.twice(x)))


def flags(model):
    return {name: module.training for name, module in model.named_modules()}


def test_every_module_gets_its_own_mode_back():
    model = Shared().train()
    model.frozen.eval()
    model.once.eval()
    before = flags(model)
    assert set(before.values()) == {True, False}
    with evaluating(model):
        assert set(flags(model).values()) == {False}
    assert flags(model) == before
    # after a failure too
    with pytest.raises(RuntimeError), evaluating(model.train()):
        model(torch.randn(1, 4))
    assert set(flags(model).values()) == {True}


def test_every_use_is_seen_in_turn_with_the_name_of_the_layer():
    model, seen = Shared(), []
    x = torch.randn(4, 3)
    layers = {"b": model.once, "a": model.twice}
    with watching(layers, lambda name, x: seen.append((name, x))):
        wanted = model(x)
    assert [name for name, _ in seen] == ["a", "a", "b"]
    assert seen[0][1] is x
    assert torch.equal(seen[1][1], model.twice(x))
    assert torch.equal(seen[2][1], model.twice(model.twice(x)))
    assert torch.equal(model(x), wanted)
    assert len(seen) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_the_hooks_are_gone_and_those_of_others_stay(fails):
    model, others = Shared(), []
    model.twice.register_forward_pre_hook(lambda *_: others.append(1))

    def on_input(name, x):
        if fails:
            raise RuntimeError("out of luck")

    layers = {"twice": model.twice, "once": model.once}
    for module in layers.values():
        assert len(module._forward_pre_hooks) == (module is model.twice)
    if fails:
        with pytest.raises(RuntimeError, match="out of luck"), watching(layers, on_input):
            model(torch.randn(1, 3))
    else:
        with watching(layers, on_input):
            assert len(model.twice._forward_pre_hooks) == 2
            model(torch.randn(1, 3))
    assert len(model.twice._forward_pre_hooks) == 1
    assert len(model.once._forward_pre_hooks) == 0
    del others[:]
    model(torch.randn(1, 3))
    assert others == [1, 1]


def test_a_layer_that_cannot_be_watched_leaves_no_hook_on_the_ones_before():
    model = Shared()
    with (
        pytest.raises(AttributeError),
        watching({"twice": model.twice, "none": None}, lambda *_: None),
    ):
        pass
    assert len(model.twice._forward_pre_hooks) == 0


def test_two_names_of_one_layer_are_both_told():
    model, seen = nn.Linear(3, 3), []
    with watching({"a": model, "b": model}, lambda name, _: seen.append(name)):
        model(torch.randn(1, 3))
    assert seen == ["a", "b"]

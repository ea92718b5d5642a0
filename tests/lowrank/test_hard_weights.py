"""Weights that are hard to factorize, through every method that factorizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lowrank import LowRankLinear, Pruner
from lowrank.moments import collect_moments
from tests.lowrank import relative_error
from tests.lowrank.every_method import FULL, METHODS

FACTORIZING = [kind for kind in METHODS if "agp " not in kind and "movement" not in kind]
FACTORIZING = [kind for kind in FACTORIZING if kind != "neuron-l0"] + ["flop-agp tensor"]
HARD = {
    "huge": lambda weight: weight * 1e25,
    "tiny": lambda weight: weight * 1e-25,
    "zero": torch.zeros_like,
    "rank one": lambda weight: torch.outer(weight[:, 0], weight[0]),
    "badly scaled": lambda weight: weight * torch.logspace(-9, 9, weight.shape[1]),
}


@pytest.mark.parametrize("weights", list(HARD))
@pytest.mark.parametrize("kind", FACTORIZING)
@torch.no_grad()
def test_hard_weights_are_pruned_and_stay_finite(kind, weights):
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8, bias=False))
    for layer in model:
        layer.weight.copy_(HARD[weights](layer.weight))
    dense = copy.deepcopy(model[0])
    x = torch.randn(300, 8) + 1
    sums = collect_moments(model[0], {"0": model[0]}, [{"input": x}])
    moments = {"0": sums["0"].moments()}
    pruner = Pruner(model, METHODS[kind](density=0.5), include=["0"], moments=moments)
    layer = pruner.layers["0"].eval()
    if kind in FULL:
        assert relative_error(layer(x), dense(x)) < 1e-5
    projection = pruner.project()
    assert projection.density <= 0.5 or kind == "flop-l0 faithful"
    small = pruner.finish().eval()[0]
    assert isinstance(small, LowRankLinear)
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())
    assert torch.isfinite(small(x)).all()
    if weights in ("zero", "rank one"):
        assert relative_error(small(x), dense(x)) < 1e-4

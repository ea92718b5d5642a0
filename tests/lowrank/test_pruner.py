"""Inserting a method's layers, and what the optimizer is given."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from lowrank import DensityError, FlopL0, LowRankError, Pruner
from tests.lowrank import mlp, tiny_gpt2

HALF = FlopL0(density=0.5, gated_steps=8, anneal_fraction=0.5)


def test_parameter_groups_hold_every_parameter_once():
    model = tiny_gpt2()
    pruner = Pruner(model, HALF)
    model.transformer.wpe.weight.requires_grad_(False)
    matrices, vectors, gates = pruner.parameter_groups(1e-3, weight_decay=0.2)
    listed = [id(p) for group in (matrices, vectors, gates) for p in group["params"]]
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(listed) == len(set(listed))
    assert set(listed) == wanted
    assert all(p.ndim == 2 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
    assert [id(p) for p in gates["params"]] == [
        id(layer.gate.log_alpha) for layer in pruner.layers.values()
    ]
    assert [group["weight_decay"] for group in (matrices, vectors, gates)] == [0.2, 0, 0]
    assert [group["lr"] for group in (matrices, vectors, gates)] == [1e-3, 1e-3, 30 / 8]
    torch.optim.AdamW([matrices, vectors, gates])


def test_the_size_of_the_job_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="lowrank"):
        Pruner(mlp(), HALF, include=["0", "2"])
    assert "2 layers, 288 parameters to prune" in caplog.text


def test_a_target_below_the_floor_is_refused_before_the_model_is_touched():
    model = mlp()
    before = [type(module) for module in model.modules()]
    with pytest.raises(DensityError, match=r"density >= 0.166667 must hold"):
        Pruner(model, FlopL0(density=0.1))
    assert [type(module) for module in model.modules()] == before


def test_a_broken_weight_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(LowRankError, match="layer '1'"):
        Pruner(model, FlopL0(density=0.5))

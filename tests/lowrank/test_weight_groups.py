"""Who decays."""

from __future__ import annotations

import torch

from lowrank.weight_groups import weight_groups
from tests.lowrank import tiny_bert


def test_matrices_decay_and_vectors_do_not():
    model = tiny_bert()
    matrices, vectors = weight_groups(model.parameters(), 1e-3, 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert matrices["lr"] == vectors["lr"] == 1e-3
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_what_is_frozen_is_left_out():
    model = torch.nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    matrices, vectors = weight_groups(model.parameters(), 1e-3, 0.1)
    assert not matrices["params"]
    assert vectors["params"] == [model.bias]

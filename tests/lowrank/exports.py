"""A saved model, and ways to damage it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank import (
    ExportError,
    FlopL0,
    Pruner,
    load,
)
from lowrank.export import WEIGHTS, sha256_of
from lowrank.manifest import MANIFEST
from tests.lowrank import mlp, scramble_gates


def pruned(model, density=0.5):
    pruner = Pruner(model, FlopL0(density=density))
    scramble_gates(pruner)
    return pruner.finish().eval()


def assert_same(actual, expected):
    """The same names, shapes, dtypes and bits."""
    actual, expected = actual.state_dict(), expected.state_dict()
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


class Tied(nn.Module):
    """A shared layer, a tied head, a layer that is not pruned and buffers."""

    def __init__(self, tie=True):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.first = self.again = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 7, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.norm(self.again(torch.tanh(self.first(self.embedding(ids))))))


def edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def edit_weights(folder, change, seal=True):
    """Change the tensors; by default make the manifest agree, so that a later check must notice."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    if seal:

        def agree(manifest):
            manifest["weights_sha256"] = sha256_of(folder / WEIGHTS)
            manifest["tensors"] = {
                name: [str(value.dtype).removeprefix("torch."), list(value.shape)]
                for name, value in tensors.items()
            }

        edit_manifest(folder, agree)


def refuses(folder, message, model=None):
    with pytest.raises(ExportError, match=message):
        load(mlp(1) if model is None else model, folder)

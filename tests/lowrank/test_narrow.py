"""Narrower layers by themselves, and exports of them that do not fit together."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lowrank import ExportError, HeadsFfn, LayerShape, Pruner, SurgeryError, save
from lowrank.export import load
from lowrank.linear import dense_weight
from lowrank.manifest import MANIFEST, read_manifest
from lowrank.narrow import full_shape, narrow_linear, narrowed, set_head_counts
from tests.lowrank import mlp
from tests.lowrank.transformers_zoo import EXCLUDE, HEADS, build, logits

IN, OUT = 9, 6
SOME_IN = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 1]).bool()
SOME_OUT = torch.tensor([0, 1, 1, 0, 1, 0]).bool()


def make(kind, bias=True):
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(IN, OUT, bias=bias).double().eval()
    layer = Conv1D(OUT, IN)
    nn.init.normal_(layer.bias)
    return layer.double().eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep_out", [SOME_OUT, None], ids=["some out", "all out"])
@pytest.mark.parametrize("keep_in", [SOME_IN, None], ids=["some in", "all in"])
def test_it_is_the_dense_layer_of_the_kept_features(keep_in, keep_out, bias):
    dense = make("linear", bias)
    before = copy.deepcopy(dense)
    small = narrowed(dense, keep_in, keep_out)
    rows = slice(None) if keep_out is None else keep_out
    columns = slice(None) if keep_in is None else keep_in
    x = torch.randn(2, 3, IN, dtype=torch.float64)
    wanted = F.linear(x[..., columns], dense.weight[rows][:, columns])
    wanted = wanted if dense.bias is None else wanted + dense.bias[rows]
    torch.testing.assert_close(small(x[..., columns]), wanted)
    assert type(small) is nn.Linear
    assert full_shape(small) == full_shape(copy.deepcopy(small)) == LayerShape(IN, OUT)
    assert small.weight.shape == (small.out_features, small.in_features)
    assert not small.training
    # a copy: the dense layer stays as it is
    with torch.no_grad():
        small.weight.zero_()
    assert torch.equal(dense.weight, before.weight)


def test_conv1d_becomes_a_linear_layer():
    dense = make("conv1d")
    small = narrowed(dense, SOME_IN, SOME_OUT)
    assert torch.equal(small.weight, dense_weight(dense)[SOME_OUT][:, SOME_IN])
    assert torch.equal(small.bias, dense.bias[SOME_OUT])


def test_what_is_narrowed_twice_remembers_the_first_width():
    small = narrowed(narrowed(make("linear"), SOME_IN), keep_out=SOME_OUT)
    assert small.weight.shape == (3, 5)
    assert full_shape(small) == LayerShape(IN, OUT)
    assert full_shape(make("linear")) is None


def test_making_one_draws_nothing():
    state = torch.get_rng_state()
    narrow_linear(IN, OUT, 3, 2)
    assert torch.equal(torch.get_rng_state(), state)


# --- what a block's matrices have to do with each other


def compacted():
    pruner = Pruner(build("Bert"), HeadsFfn(density=0.5), exclude=EXCLUDE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in pruner.layers.values():
            gate = layer.gate.parameter
            gate.copy_(torch.randn(gate.shape, generator=generator))
    return pruner.finish()


def test_counting_heads_again_changes_nothing():
    model = compacted()
    before = repr([vars(module) for module in model.modules() if hasattr(module, "all_head_size")])
    set_head_counts(model)
    after = repr([vars(module) for module in model.modules() if hasattr(module, "all_head_size")])
    assert before == after
    dense = build("Bert")
    set_head_counts(dense)
    assert dense.bert.encoder.layer[0].attention.self.num_attention_heads == HEADS


def test_a_narrow_layer_outside_of_a_block_is_refused():
    model = mlp(width=IN)
    model[2] = narrowed(model[2].double(), SOME_IN)
    with pytest.raises(SurgeryError, match="layer '2' is narrower than the configuration says"):
        set_head_counts(model)


QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def saved(tmp_path):
    return save(compacted(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["layers"].pop(QUERY), r"layer\.0\.attention: .* must be narrower together"),
        (lambda m: m["layers"][QUERY].update(num_out=5), r"agree in width, in units of 4, got \[5"),
        (
            lambda m: m["layers"][QUERY].update(num_out=0),
            "query': 1 <= num_out <= 16 must hold",
        ),
        (lambda m: m["layers"][QUERY].update(in_features=17), r"\(17, 16\) features in the export"),
        (lambda m: m.update(schema_version=4), "schema version 3 is read here, got 4"),
    ],
)
def test_a_damaged_export_is_refused(saved, change, message):
    manifest = json.loads((saved / MANIFEST).read_text())
    assert manifest["layers"][QUERY]["form"] == "narrow"
    change(manifest)
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=message):
        load(build("Bert"), saved)


def test_the_manifest_names_both_widths(saved):
    manifest = read_manifest(saved)
    assert manifest["schema_version"] == 3
    small = load(build("Bert", seed=3), saved)
    query = small.get_submodule(QUERY)
    assert manifest["layers"][QUERY] == {
        "form": "narrow",
        "in_features": 16,
        "out_features": 16,
        "num_in": 16,
        "num_out": query.out_features,
        "bias": True,
    }


def test_an_export_of_version_2_is_still_read(tmp_path):
    dense = build("Bert")
    folder = save(dense, tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 2}))
    loaded = load(build("Bert", seed=3), folder)
    assert torch.equal(logits(loaded), logits(dense))

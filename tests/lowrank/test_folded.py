"""The folded form: what the compacted model computes, as a plain model of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lowrank import Agp, ExportError, FixedRank, HeadsFfn, Pruner, Start
from lowrank.embedding import LowRankEmbedding, LowRankHead
from lowrank.folded import folded, multiply_out_, save_folded
from lowrank.linear import LowRankLinear
from tests.lowrank import relative_error, tiny_bert, tiny_gpt2
from tests.lowrank.test_auto import MODELS, compacted, output, ties, tiny_adaptive_decoder
from tests.lowrank.transformers_zoo import EXCLUDE, FAMILIES, build, logits

OURS = [kind for kind in MODELS if kind != "adaptive decoder"]


@pytest.mark.parametrize("kind", OURS)
def test_the_dense_model_computes_what_the_compacted_one_does(kind):
    model, _ = compacted(kind)
    dense = folded(model)
    assert type(dense) is type(model)
    assert {type(m) for m in dense.modules()} == {type(m) for m in MODELS[kind][0]().modules()}
    assert relative_error(output(dense), output(model)) < 1e-5
    assert ties(dense) == ties(MODELS[kind][0]())
    assert not dense.training


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_removed_heads_and_neurons_come_back_as_nothing(family):
    pruner = Pruner(build(family), HeadsFfn(density=0.5, gated_steps=1), exclude=EXCLUDE)
    small = pruner.finish().eval()
    dense = folded(small)
    assert sum(p.numel() for p in dense.parameters()) > sum(p.numel() for p in small.parameters())
    assert relative_error(logits(dense), logits(small)) < 1e-12


@pytest.mark.parametrize("granularity", ["row", "column"])
def test_removed_features_come_back_as_zeros(granularity):
    method = Agp(density=0.5, gated_steps=1, granularity=granularity)
    small = Pruner(tiny_bert(), method, exclude=["*pooler*", "classifier"]).finish().eval()
    dense = folded(small)
    assert relative_error(output(dense), output(small)) < 1e-6


@pytest.mark.parametrize(
    "kind", ["gpt2", "gpt2 with embedding", "llama", "bert", "adaptive decoder"]
)
def test_a_dense_model_is_given_the_weights_of_a_small_one(kind):
    """With other weights before; what is dense there is dense after, and ties hold."""
    small, _ = compacted(kind)
    dense: Any = MODELS[kind][0]()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(1)
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters()}
    assert multiply_out_(dense, small) is dense
    assert relative_error(output(dense), output(small)) < 1e-5
    assert {name: parameter.shape for name, parameter in dense.named_parameters()} == shapes
    assert ties(dense) == ties(MODELS[kind][0]())


def test_components_that_are_gone_come_back_to_an_adaptive_table_as_zeros():
    small, _ = compacted("adaptive decoder")
    dense: Any = multiply_out_(tiny_adaptive_decoder(), small)
    tables = [m for m in dense.modules() if isinstance(m, LowRankEmbedding)]
    ranks = [m.rank for m in small.modules() if isinstance(m, LowRankEmbedding)]
    assert any(rank < table.rank for rank, table in zip(ranks, tables, strict=True))
    for rank, table in zip(ranks, tables, strict=True):
        assert not table.weight[:, rank:].any()
        assert not table.projection[rank:].any()


def test_products_are_made_in_float64_and_rounded_once():
    model, _ = compacted("llama")
    layer: Any = model.to(torch.bfloat16).get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, LowRankLinear)
    weight = folded(model).get_submodule("model.layers.0.mlp.up_proj").weight
    exact = layer.weight.double() @ layer.projection.double()
    assert torch.equal(weight, exact.to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["gpt2 with embedding", "bert"])
def test_the_folder_is_a_plain_one(kind, tmp_path):
    import transformers

    model, auto_class = compacted(kind)
    save_folded(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".safetensors") == [
        "model.safetensors"
    ]
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    dense = MODELS[kind][0]()
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
    assert stored == sum(p.numel() for p in dense.parameters()), "ties are stored once"
    loaded, info = getattr(transformers, auto_class).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    assert relative_error(output(loaded), output(model)) < 1e-5


def test_an_architecture_of_ours_is_refused():
    with pytest.raises(ExportError, match="model type 'adaptive-decoder' is no part of transf"):
        folded(tiny_adaptive_decoder())


def test_a_tie_that_is_broken_is_refused():
    model: Any = tiny_gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)
    with pytest.raises(ExportError, match=r"lm_head.weight is tied to transformer.wte.weight in"):
        folded(model)


def test_a_bias_that_the_architecture_does_not_have_is_refused():
    pruner = Pruner(
        tiny_gpt2(), FixedRank(density=0.4, start=Start()), embeddings=True, exclude=["*.h.*"]
    )
    model: Any = pruner.finish()
    assert isinstance(model.lm_head, LowRankHead)
    model.lm_head.bias = nn.Parameter(torch.ones(40))
    with pytest.raises(ExportError, match=r"no folded form: lm_head.bias is not the same tensor"):
        folded(model)


def test_the_model_itself_stays_as_it_is(tmp_path: Path):
    model, _ = compacted("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_folded(model, tmp_path)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())

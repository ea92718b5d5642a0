from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lowrank import (
    Agp,
    ExportError,
    FlopL0,
    LowRankLinear,
    Pruner,
    SlicedLinear,
    load,
    save,
)
from lowrank.counting import num_parameters
from lowrank.export import WEIGHTS, is_finite, num_stored_parameters
from lowrank.manifest import MANIFEST, read_manifest
from tests.lowrank import mlp, tiny_bert, tiny_gpt2, token_ids
from tests.lowrank.exports import Tied, assert_same, edit_manifest, edit_weights, pruned, refuses

# --- what comes back


def test_what_is_loaded_is_what_was_saved(saved):
    small, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, WEIGHTS]
    fresh = mlp(seed=9)
    loaded = load(fresh, folder)
    assert loaded is fresh
    assert_same(loaded, small)
    x = torch.randn(4, 12)
    assert torch.equal(loaded.eval()(x), small(x))
    assert [type(layer) for layer in loaded] == [type(layer) for layer in small]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bert])
@torch.no_grad()
def test_transformers_come_back_bit_for_bit(make, tmp_path):
    small = pruned(make(0))
    loaded = load(make(1), save(small, tmp_path))
    assert_same(loaded, small)
    ids = token_ids()
    assert torch.equal(loaded(input_ids=ids).logits, small(input_ids=ids).logits)
    assert num_parameters(loaded) == num_parameters(small) == num_stored_parameters(tmp_path)


def test_a_dense_model_can_be_saved_too(tmp_path):
    dense = mlp(0)
    assert_same(load(mlp(1), save(dense, tmp_path)), dense)
    assert read_manifest(tmp_path)["layers"] == {}


def test_a_model_that_is_one_layer_comes_back_as_another_object(tmp_path):
    small = pruned(nn.Linear(12, 12))
    assert isinstance(small, LowRankLinear)
    assert_same(load(nn.Linear(12, 12), save(small, tmp_path)), small)


FORMER_NAMES = {"weight": "up.weight", "bias": "up.bias", "projection": "down.weight"}
"""Of factors, in exports of versions 1 and 2."""


@pytest.mark.parametrize("version", [1, 2])
def test_an_export_of_an_older_version_is_still_read(saved, version):
    small, folder = saved

    def former(tensors):
        for layer in ("2", "4"):
            for name, then in FORMER_NAMES.items():
                tensors[f"{layer}.{then}"] = tensors.pop(f"{layer}.{name}")

    def older(manifest):
        manifest["schema_version"] = version
        if version == 1:
            layers = manifest.pop("layers")
            manifest["low_rank"] = {
                name: {key: layer[key] for key in ("in_features", "out_features", "rank", "bias")}
                for name, layer in layers.items()
            }

    edit_weights(folder, former)
    edit_manifest(folder, older)
    assert "4.up.weight" in json.loads((folder / MANIFEST).read_text())["tensors"]
    assert_same(load(mlp(9), folder), small)


@pytest.fixture
def sliced(tmp_path):
    """Columns removed from all layers but one; and the folder."""
    pruner = Pruner(mlp(0), Agp(density=0.5, granularity="column", gated_steps=1), exclude=["2"])
    small = pruner.finish().eval()
    return small, save(small, tmp_path / "model")


def test_sliced_layers_come_back_with_their_indices(sliced):
    small, folder = sliced
    assert [type(small[k]) for k in (0, 2, 4)] == [SlicedLinear, nn.Linear, SlicedLinear]
    loaded = load(mlp(9), folder)
    assert_same(loaded, small)
    assert loaded[0].kept_in.dtype == torch.int32
    x = torch.randn(4, 12)
    assert torch.equal(loaded(x), small(x))
    assert num_stored_parameters(folder) == num_parameters(loaded) + 12  # the indices
    assert read_manifest(folder)["layers"]["0"]["num_in"] == len(small[0].kept_in)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "diced"}, r"must have a form, one of \['low-rank', .*'sliced'\]"),
        ({"form": "low-rank"}, r"must have .*'rank'"),
        ({"num_out": 0}, r"1 <= num_out <= \d+ must hold, got 0"),
        ({"num_out": 11}, r"missing: 0\.kept_out"),
        ({"num_in": 12}, r"unexpected: 0\.kept_in"),
        ({"num_in": 2}, r"of another shape: 0\.kept_in, 0\.weight"),
    ],
)
def test_a_sliced_layer_of_another_form_or_size_is_refused(sliced, change, message):
    _, folder = sliced
    edit_manifest(folder, lambda manifest: manifest["layers"]["0"].update(change))
    refuses(folder, message)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index + 12 - index[-1],  # one past the width
        lambda index: index - 1 - index[0],
        lambda index: index.flip(0),
        lambda index: index[:1].expand(len(index)).contiguous(),
    ],
    ids=["too large", "negative", "falling", "repeated"],
)
@pytest.mark.parametrize(("granularity", "buffer"), [("column", "kept_in"), ("row", "kept_out")])
def test_kept_features_that_the_layer_does_not_have_are_refused(
    tmp_path, granularity, buffer, change
):
    method = Agp(density=0.5, granularity=granularity, gated_steps=1)
    folder = save(Pruner(mlp(0), method).finish(), tmp_path / "model")
    assert torch.equal(
        getattr(load(mlp(1), folder)[4], buffer), load_file(folder / WEIGHTS)[f"4.{buffer}"]
    )

    def damage(tensors):
        tensors[f"4.{buffer}"] = change(tensors[f"4.{buffer}"])

    edit_weights(folder, damage)
    refuses(folder, "layer '4' keeps features that it does not have")


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path):
    model = tiny_gpt2()
    small = pruned(model)
    folder = save(small, tmp_path)
    manifest = read_manifest(folder)
    assert manifest["aliases"] == {"lm_head.weight": "transformer.wte.weight"}
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    loaded = load(tiny_gpt2(1), folder)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_shared_layers_and_buffers_come_back(tmp_path):
    small = pruned(Tied(), density=0.6)
    assert isinstance(small.first, LowRankLinear)
    small.norm.running_mean.uniform_()
    loaded = load(Tied(), save(small, tmp_path))
    assert_same(loaded, small)
    assert loaded.first is loaded.again
    assert num_parameters(loaded) == num_parameters(small)
    assert num_stored_parameters(tmp_path) == num_parameters(small) + sum(
        buffer.numel() for buffer in small.buffers()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_file_decides_the_dtype_of_parameters_and_buffers(dtype, tmp_path):
    small = pruned(Tied()).to(dtype)
    loaded = load(Tied(), save(small, tmp_path))
    assert loaded.norm.running_mean.dtype == dtype
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    assert loaded.head.weight is loaded.embedding.weight
    assert_same(loaded, small)


def test_metadata_is_kept(tmp_path):
    save(mlp(), tmp_path, {"density": 0.5, "note": "é"})
    assert read_manifest(tmp_path)["metadata"] == {"density": 0.5, "note": "é"}


def test_saving_again_replaces_the_model(saved):
    _, folder = saved
    other = pruned(mlp(3), density=0.8)
    save(other, folder)
    assert_same(load(mlp(1), folder), other)


def test_saving_changes_nothing_in_the_model(tmp_path):
    small = pruned(tiny_gpt2())
    before = copy.deepcopy(small.state_dict())
    save(small, tmp_path)
    assert small.lm_head.weight is small.transformer.wte.weight
    for name, value in small.state_dict().items():
        assert torch.equal(value, before[name])


# --- what is not saved


def test_a_model_with_gates_is_not_saved(tmp_path):
    pruner = Pruner(mlp(), FlopL0(density=0.5))
    with pytest.raises(ExportError, match=r"^0: gates are still in the model"):
        save(pruner.model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_layer_called_gate_is_no_pruning_gate(tmp_path):
    def mixture():
        return nn.ModuleDict({"gate": nn.Linear(4, 2), "experts": nn.Linear(4, 4)})

    model = mixture()
    assert_same(load(mixture(), save(model, tmp_path)), model)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_that_is_not_finite_is_not_saved(value, tmp_path):
    model = mlp()
    with torch.no_grad():
        model[2].bias[3] = value
    with pytest.raises(ExportError, match=r"^2\.bias: a saved model must be finite"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found_anywhere(dtype, value):
    info = torch.finfo(dtype)
    # a sum of these would be infinite
    tensor = torch.full((3, 257), info.max, dtype=dtype)
    tensor[1] = info.min
    assert is_finite(tensor)
    for place in (0, 300, 770):
        broken = tensor.clone()
        broken.view(-1)[place] = value
        assert not is_finite(broken)


def test_whole_numbers_and_nothing_are_finite():
    assert is_finite(torch.tensor([2**62]))
    assert is_finite(torch.empty(0, 3))

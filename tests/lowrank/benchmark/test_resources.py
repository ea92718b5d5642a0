from __future__ import annotations

import copy

import pytest
import torch

from lowrank import LowRankError, NeuronL0, Pruner
from lowrank.benchmark.fresh import peak_bytes
from lowrank.benchmark.phases import Work
from lowrank.benchmark.resources import _folders, measure_resources
from lowrank.benchmark.subjects import HEADS, Subject, from_folders
from lowrank.hf import load_pretrained, save_pretrained
from tests.lowrank import relative_error, tiny_gpt2, token_ids
from tests.lowrank.benchmark import tiny_decoder, tiny_encoder

SIDES = ("dense", "compressed")
WORK = Work("forward", 1, 8)


@pytest.mark.slow
def test_fresh_processes_tell_load_time_and_memory():
    found = measure_resources(tiny_encoder(), WORK, loads=1)
    assert [*found] == ["dense", "compressed", "folded", "dense int8", "compressed int8"]
    for form in ("dense", "compressed", "folded"):
        told = found[form]
        assert 0 < told["load_s"] == told["loads_s"][0]
        assert 0 < told["start_bytes"] <= told["load_peak_bytes"] <= told["peak_bytes"]
        assert "device_peak_bytes" not in told
    assert found["compressed"]["file_bytes"] < found["dense"]["file_bytes"]
    assert found["dense int8"]["file_bytes"] < found["dense"]["file_bytes"]


@pytest.mark.slow
def test_an_export_that_does_not_load_is_an_error_with_its_message(tmp_path):
    subject = tiny_encoder()
    auto_class = "AutoModelForSequenceClassification"
    folders = [
        save_pretrained(model, tmp_path / name, auto_class)
        for name, model in (("dense", subject.dense), ("small", subject.compressed))
    ]
    loaded = from_folders(*folders)
    weights = folders[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LowRankError, match="dense could not be loaded in a fresh process"):
        measure_resources(loaded, WORK, loads=1)


@pytest.mark.parametrize("make", [tiny_encoder, tiny_decoder])
def test_exports_are_the_models_that_were_timed(make):
    subject = make()
    with _folders(subject) as folders, torch.no_grad():
        loaded = {form: load_pretrained(folder) for form, folder in folders.items()}
        found = {form: model(token_ids()).logits for form, model in loaded.items()}
        wanted = {side: getattr(subject, side)(token_ids()).logits for side in SIDES}
    assert [*found] == [*SIDES, "folded"]
    for side in SIDES:
        assert torch.equal(found[side], wanted[side])
    assert relative_error(found["folded"], wanted["compressed"]) < 1e-5
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in loaded.values()]
    assert shapes[2] == shapes[0] != shapes[1]


def test_what_is_no_pair_of_factors_is_folded_too():
    dense = tiny_encoder().dense
    small = Pruner(copy.deepcopy(dense), NeuronL0(density=0.5), exclude=HEADS).finish().eval()
    subject = Subject(name="sliced", kind="encoder", dense=dense, compressed=small)
    with _folders(subject) as folders, torch.no_grad():
        assert [*folders] == [*SIDES, "folded"]
        found = load_pretrained(folders["folded"])(token_ids()).logits
        assert relative_error(found, small(token_ids()).logits) < 1e-5


def test_a_model_without_a_folded_form_has_no_such_export():
    model = tiny_gpt2()
    model.config.model_type = "sru"
    subject = Subject(name="own", kind="decoder", dense=tiny_gpt2(), compressed=model)
    with _folders(subject) as folders:
        assert [*folders] == [*SIDES]


def test_the_peak_only_grows():
    before = peak_bytes()
    block = bytearray(64 * 1024 * 1024)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_bytes() >= max(before, len(block))

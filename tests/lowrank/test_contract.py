"""The contract: what an exported folder answers in a process that knows nothing but the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowrank import ExportError, FlopL0, Pruner
from lowrank.answer import answer, form_of
from lowrank.contract import (
    REFERENCE,
    TOLERANCES,
    Reference,
    check_answers,
    fresh_answers,
    load_reference,
    reference_of,
    save_reference,
    verify,
)
from lowrank.folded import folded, save_folded
from lowrank.graphs import input_names, save_program
from lowrank.hf import load_pretrained, save_pretrained
from tests.lowrank import scramble_gates, tiny_gpt2
from tests.lowrank.test_auto import CAUSAL, compacted, edit


@pytest.fixture(scope="module")
def projected() -> tuple[Reference, Any]:
    """The answers of a gated model whose shut gates are shut for good, and the compacted model."""
    pruner = Pruner(tiny_gpt2(), FlopL0(density=0.5))
    scramble_gates(pruner)
    projection = pruner.project()
    with torch.no_grad():
        for name, layer in pruner.layers.items():
            layer.gate.log_alpha[~projection.keep[name]] = -100
    reference = reference_of(pruner.model)
    return reference, pruner.finish(projection).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "routes"),
    [
        ("factorized", ("from_pretrained", "load_pretrained")),
        ("folded", ("from_pretrained",)),
        ("pt2", ("torch.export.load",)),
    ],
)
def test_every_form_answers_like_the_gated_model(form, routes, projected, tmp_path: Path):
    reference, model = projected
    if form == "factorized":
        save_pretrained(model, tmp_path, CAUSAL)
    elif form == "folded":
        save_folded(model, tmp_path)
    else:
        save_program(model, tmp_path, input_names(model))
    verdict = verify(tmp_path, reference)
    assert (verdict.form, verdict.routes) == (form, routes)
    assert verdict.error <= verdict.tolerance == 1e-5


@pytest.mark.slow
def test_what_stops_a_fresh_process_is_told(projected, tmp_path: Path):
    """A renamed tensor in a plain folder: transformers alone would go on with random numbers."""
    reference, model = projected
    folder = save_folded(model, tmp_path)
    edit(folder, rename)
    with pytest.raises(ExportError, match=r"in a fresh process: ValueError: missing_keys: \S+bias"):
        verify(folder, reference)


def test_a_process_that_dies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(ExportError, match=r"in a fresh process: it ended with code 1: "):
        fresh_answers(tmp_path, [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_tolerance_of_its_own(dtype, tmp_path: Path):
    model, auto_class = compacted("bert")
    reference = reference_of(model.to(dtype))
    assert reference.logits[0].dtype == dtype
    loaded = load_pretrained(save_pretrained(model, tmp_path, auto_class))
    assert check_answers(loaded, reference, "here") == 0
    assert 0 < check_answers(folded(model), reference, "here") <= TOLERANCES[dtype]


def test_the_model_is_left_as_it_is_and_its_answers_are_kept(tmp_path: Path):
    model, _ = compacted("bert")
    model.train()
    reference = reference_of(model)
    assert model.training
    assert [tuple(case["input_ids"].shape) for case in reference.inputs] == [(1, 4), (3, 8)]
    assert (reference.inputs[1]["attention_mask"] == 0).any()
    save_reference(reference, tmp_path)
    again = load_reference(tmp_path)
    assert all(map(torch.equal, again.logits, reference.logits))
    assert again.inputs[1].keys() == reference.inputs[1].keys()
    (tmp_path / REFERENCE).write_bytes(b"no")
    with pytest.raises(ExportError, match=r"reference.safetensors: cannot be read"):
        load_reference(tmp_path)
    with pytest.raises(ExportError, match=r"no such file; export the model again"):
        load_reference(tmp_path / "none")


def test_other_weights_are_noticed():
    model, _ = compacted("gpt2")
    reference = reference_of(model)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] += 0.01
    with pytest.raises(ExportError, match="x: logits must be within 1e-05 of the model's in mem"):
        check_answers(model, reference, "x")


def test_logits_of_another_shape_are_noticed():
    model, _ = compacted("bert")
    reference = reference_of(model)
    reference.logits[0] = reference.logits[0][:, :2]
    with pytest.raises(ExportError, match="got nan"):
        check_answers(model, reference, "x")


def rename(tensors: dict[str, Any]) -> None:
    tensors["transformer.h.0.mlp.c_fc.other"] = tensors.pop("transformer.h.0.mlp.c_fc.bias")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "missing_keys: transformer.h.0.mlp.c_fc.bias"),
        (lambda t: t.update(more=torch.ones(1)), "unexpected_keys: more"),
        (
            lambda t: t["transformer.h.0.mlp.c_fc.bias"].fill_(float("nan")),
            "transformer.h.0.mlp.c_fc.bias holds NaN or infinity",
        ),
    ],
)
def test_damage_to_a_plain_folder_is_noticed(change, message, projected, tmp_path):
    """By what the fresh process does, done here."""
    reference, model = projected
    edit(save_folded(model, tmp_path), change)
    with pytest.raises(ValueError, match=message):
        answer(tmp_path, reference.inputs)


def test_the_form_is_told_by_what_is_there(projected, tmp_path: Path):
    save_folded(projected[1], tmp_path)
    assert load_file(tmp_path / "model.safetensors")
    assert form_of(tmp_path) == "folded"
    marks = {"model.pt2": "pt2", "model.onnx": "onnx", "lowrank.json": "factorized"}
    for name, form in marks.items():
        (tmp_path / name).touch()
        assert form_of(tmp_path) == form
        (tmp_path / name).unlink()

"""From one factorized export to every form, with its note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank import ExportError
from lowrank.contract import REFERENCE, load_reference, reference_of, save_reference
from lowrank.conversion import FORMS, NOTE, WEIGHT_FILES, convert, read_note, verify_export
from lowrank.hf import save_pretrained
from lowrank.manifest import MANIFEST, read_manifest
from tests.lowrank.test_auto import compacted

KIND = "gpt2 with embedding"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, auto_class = compacted(KIND)
    folder = tmp_path_factory.mktemp("source")
    save_pretrained(model, folder, auto_class, metadata={"target_density": 0.4})
    save_reference(reference_of(model), folder)
    return folder


@pytest.fixture(scope="module", params=FORMS)
def converted(request: pytest.FixtureRequest, source: Path, tmp_path_factory: Any) -> Any:
    if request.param == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
        pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    out = tmp_path_factory.mktemp("forms") / request.param
    return request.param, convert(source, request.param, out)


def test_the_note_says_what_the_form_weighs(converted, source: Path):
    form, out = converted
    note = read_note(out)
    assert note["form"] == form
    assert note["made_of"] == read_manifest(source)["weights_sha256"]
    stored = (out / WEIGHT_FILES[form]).stat().st_size
    dense = note["sizes"]["dense"]
    assert note["sizes"]["this"]["bytes"] == stored
    assert f"{stored:,} bytes" in note["says"]
    assert f"{dense['num_bytes']:,}" in note["says"]
    densities = note["sizes"]["densities"]
    if form == "folded":
        assert "on disk, in memory and in time this is the dense model again" in note["says"]
        assert densities["prunable"] == densities["parameters"] == densities["macs"] == 1
    else:
        assert densities["prunable"] <= 0.4
        # constants of a graph count too, and there are few
        assert densities["parameters"] < 0.8
    if form == "pivoted":
        wider = note["sizes"]["factorized"]
        assert densities["prunable"] < wider["num_prunable"] / dense["num_prunable"]
    assert densities["bytes"] == stored / dense["num_bytes"]
    old, new = load_reference(source), load_reference(out)
    assert all(map(torch.equal, old.logits, new.logits)), "the model's own answers travel along"


@pytest.mark.slow
def test_the_contract_is_kept(converted):
    form, out = converted
    verdict, sizes = verify_export(out)
    assert verdict.form == ("factorized" if form == "pivoted" else form), "how it is loaded"
    assert verdict.error <= verdict.tolerance
    assert sizes["weights"] == read_note(out)["sizes"]["this"]


def test_a_digest_that_differs_is_refused(converted, tmp_path: Path):
    form, out = converted
    if form in ("factorized", "pivoted"):
        return  # their manifest has the digest
    path = out / WEIGHT_FILES[form]
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ExportError, match=rf"{path.name}: SHA-256 is \w+, export.json says"):
            verify_export(out)
        path.unlink()
        with pytest.raises(ExportError, match=rf"{NOTE}|{path.name}: no such file"):
            verify_export(out)
    finally:
        path.write_bytes(whole)


def test_a_model_larger_than_was_asked_for_has_no_form(source: Path, tmp_path: Path):
    model, auto_class = compacted(KIND)
    save_pretrained(model, tmp_path / "a", auto_class, metadata={"target_density": 0.1})
    with pytest.raises(ExportError, match=r"realized density <= target must hold, got 0\.3"):
        convert(tmp_path / "a", "folded", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_source_without_answers_gives_those_of_its_weights(source: Path, tmp_path: Path):
    model, auto_class = compacted(KIND)
    save_pretrained(model, tmp_path / "a", auto_class)
    out = convert(tmp_path / "a", "folded", tmp_path / "b")
    wanted = load_reference(source)
    assert all(map(torch.equal, load_reference(out).logits, wanted.logits))
    assert not (tmp_path / "a" / REFERENCE).exists()


def test_bad_requests_are_refused_before_anything_is_written(source: Path, tmp_path: Path):
    with pytest.raises(
        ExportError, match="form must be one of factorized, pivoted, folded, onnx, pt2, got"
    ):
        convert(source, "gguf", tmp_path / "x")
    with pytest.raises(ExportError, match="must be a new or empty folder"):
        convert(source, "folded", source)
    with pytest.raises(ExportError, match="not a finished lowrank export"):
        convert(tmp_path, "folded", tmp_path / "x")
    model, auto_class = compacted("adaptive decoder")
    save_pretrained(model, tmp_path / "ours", auto_class)
    with pytest.raises(ExportError, match="'adaptive-decoder' has no graph"):
        convert(tmp_path / "ours", "pt2", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"schema_version": 1}'])
def test_a_broken_note_is_named(text, tmp_path: Path):
    if text is not None:
        (tmp_path / NOTE).write_text(text)
    with pytest.raises(ExportError, match=r"export.json: "):
        read_note(tmp_path)


def test_a_note_of_another_version_is_refused(source: Path, tmp_path: Path):
    note = {"schema_version": 9, "form": "", "sha256": {}, "sizes": {}, "says": ""}
    (tmp_path / NOTE).write_text(json.dumps(note))
    with pytest.raises(ExportError, match="schema version 1 is read here"):
        read_note(tmp_path)
    assert (source / MANIFEST).exists()

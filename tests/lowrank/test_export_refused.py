"""Exports that are not loaded, and what is said of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowrank import (
    ExportError,
    FlopL0,
    LowRankError,
    Pruner,
    load,
    save,
)
from lowrank.export import WEIGHTS
from lowrank.manifest import MANIFEST
from tests.lowrank import mlp, tiny_bert
from tests.lowrank.exports import Tied, assert_same, edit_manifest, edit_weights, refuses


def test_an_export_error_is_of_the_library():
    assert issubclass(ExportError, LowRankError)


def test_a_missing_tensor_is_named(saved):
    _, folder = saved
    edit_weights(folder, lambda tensors: tensors.pop("2.bias"))
    refuses(folder, r"does not fit this model; missing: 2\.bias$")


def test_an_unexpected_tensor_is_named(saved):
    _, folder = saved
    edit_weights(folder, lambda tensors: tensors.update(extra=torch.ones(2)))
    refuses(folder, r"does not fit this model; unexpected: extra$")


def test_a_renamed_tensor_is_named_twice(saved):
    _, folder = saved
    edit_weights(folder, lambda tensors: tensors.update({"2.b": tensors.pop("2.bias")}))
    refuses(folder, r"missing: 2\.bias; unexpected: 2\.b$")


def test_a_reshaped_tensor_is_named(saved):
    _, folder = saved
    edit_weights(folder, lambda tensors: tensors.update({"2.bias": torch.ones(11)}))
    refuses(folder, r"of another shape: 2\.bias$")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_that_is_not_finite_is_named(saved, value):
    _, folder = saved
    edit_weights(folder, lambda tensors: tensors["2.bias"].fill_(value))
    refuses(folder, r"2\.bias holds NaN or infinity")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda tensors: tensors.pop("2.bias"), r"2\.bias"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "extra"),
        (lambda tensors: tensors.update({"2.bias": torch.ones(11)}), r"2\.bias"),
        (
            lambda tensors: tensors.update({"2.bias": tensors["2.bias"].half()}),
            r"2\.bias",
        ),
    ],
)
def test_weights_that_differ_from_the_manifest_are_named(saved, change, name):
    _, folder = saved
    edit_weights(folder, change, seal=False)
    refuses(folder, f"differs from the manifest in {name} ")


def test_one_changed_value_breaks_the_checksum(saved):
    _, folder = saved
    edit_weights(folder, lambda tensors: tensors["2.bias"].add_(1), seal=False)
    refuses(folder, rf"{WEIGHTS}: SHA-256 is [0-9a-f]{{64}}, the manifest says [0-9a-f]{{64}}")


def test_one_flipped_bit_breaks_the_checksum(saved):
    _, folder = saved
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-4] ^= 1  # the lowest bit of the last number
    (folder / WEIGHTS).write_bytes(content)
    refuses(folder, "SHA-256")


def test_a_wrong_checksum_in_the_manifest_is_noticed(saved):
    _, folder = saved
    edit_manifest(folder, lambda manifest: manifest.update(weights_sha256="0" * 64))
    refuses(folder, "SHA-256 is .*, the manifest says 0000")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused(saved, keep):
    _, folder = saved
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(keep * len(content))])
    refuses(folder, f"{WEIGHTS}: not a whole safetensors file")


def test_missing_files_are_named(saved):
    _, folder = saved
    (folder / WEIGHTS).unlink()
    refuses(folder, f"{WEIGHTS}: no such file")
    (folder / MANIFEST).unlink()
    refuses(folder, f"{MANIFEST}: no such file; not a finished lowrank export")


@pytest.mark.parametrize("text", ["", "{", "not JSON", b"\xff\xfe"])
def test_a_manifest_that_is_no_json_is_refused(saved, text):
    _, folder = saved
    content = text if isinstance(text, bytes) else text.encode()
    (folder / MANIFEST).write_bytes(content)
    refuses(folder, f"{MANIFEST}: cannot be read as JSON")


@pytest.mark.parametrize("text", ["[]", "1", "null", "{}", '{"schema_version": 1}'])
def test_a_manifest_of_another_form_is_refused(saved, text):
    _, folder = saved
    (folder / MANIFEST).write_text(text)
    refuses(folder, f"{MANIFEST}: a manifest has the keys")


@pytest.mark.parametrize("key", ["weights_sha256", "layers", "aliases", "tensors", "metadata"])
def test_a_manifest_entry_of_the_wrong_type_is_named(saved, key):
    _, folder = saved
    edit_manifest(folder, lambda manifest: manifest.update({key: [1]}))
    refuses(folder, f"{MANIFEST}: {key} must be of type")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["layers"].update({"0": {"rank": 1}}), "layer '0': must have a form, one of"),
        (lambda m: m["layers"].update({"0": 3}), "layer '0': must have a form, one of"),
        (lambda m: m["layers"]["2"].update(rank=0), "layer '2': 1 <= rank <= 12"),
        (lambda m: m["layers"]["2"].update(rank="2"), "layer '2': 1 <= rank <= 12"),
        (lambda m: m["layers"]["2"].update(rank=4), "of another shape: 2.projection"),
        (lambda m: m["layers"]["2"].update(bias=False), "unexpected: 2.bias"),
        (lambda m: m["layers"].pop("2"), "unexpected: 2.projection; of another shape: 2.weight"),
        (lambda m: m["layers"].update({"7": m["layers"]["2"]}), "layer '7' .* does not exist"),
        (lambda m: m["layers"].update({"1": m["layers"]["2"]}), "layer '1' .* does not exist"),
        (lambda m: m["aliases"].update({"a": "b"}), "alias 'a' of a missing tensor 'b'"),
        (lambda m: m["aliases"].update({"a": "0.bias"}), "unexpected: a"),
        (lambda m: m.update(schema_version=4), "schema version 3 is read here, got 4"),
    ],
)
def test_a_manifest_with_a_wrong_entry_is_refused(saved, change, message):
    _, folder = saved
    edit_manifest(folder, change)
    refuses(folder, message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: mlp(width=13), r"\(12, 12\) features in the export, \(13, 13\) in this model"),
        (lambda: mlp(depth=2), r"layer '4' of the export does not exist in this model"),
        (lambda: mlp(depth=4), r"missing: 6\.bias, 6\.weight"),
        (lambda: nn.Linear(12, 12), "does not exist in this model"),
        (nn.Identity, "does not exist in this model"),
        (tiny_bert, "does not exist in this model"),
    ],
)
def test_another_architecture_is_refused(saved, model, message):
    _, folder = saved
    refuses(folder, message, model())


def test_a_model_that_is_still_gated_is_refused(saved):
    _, folder = saved
    pruner = Pruner(mlp(), FlopL0(density=0.5))
    refuses(folder, "does not exist in this model", pruner.model)


def test_an_untied_export_is_not_loaded_into_a_tied_model(tmp_path):
    untied = Tied(tie=False)
    assert not torch.equal(untied.head.weight, untied.embedding.weight)
    folder = save(untied, tmp_path)
    refuses(folder, r"tied in this model, not in the export: head\.weight", Tied())
    assert_same(load(Tied(tie=False), folder), untied)


def test_only_the_first_offenders_are_listed(tmp_path):
    folder = save(mlp(depth=1), tmp_path)
    refuses(folder, r"missing: (\d\.\w+, ){4}\d\.\w+ and 3 more$", mlp(depth=5))

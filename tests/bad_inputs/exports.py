"""Exported models: damaged, renamed, or with a description that lies."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lowrank import FixedRank, Pruner
from lowrank.conversion import NOTE, verify_export
from lowrank.export import WEIGHTS, save, sha256_of
from lowrank.hf import save_pretrained
from lowrank.manifest import MANIFEST
from lowrank.methods.start import Start
from tests.bad_inputs.case import BadInput, command
from tests.bad_inputs.pretrained import with_code
from tests.lowrank import mlp, tiny_bert

GROUP = "Exports"
LAYER = "bert.encoder.layer.0.attention.self.query"
Change = Callable[[Path], object]


@functools.cache
def whole_export() -> Path:
    """A compressed model as `lowrank export` takes it."""
    folder = Path(tempfile.mkdtemp(prefix="lowrank-bad-inputs-"))
    method = FixedRank(density=0.5, start=Start())
    pruner = Pruner(tiny_bert(), method, include=["bert.encoder.*"])
    return save_pretrained(pruner.finish().eval(), folder, "AutoModelForSequenceClassification")


def _export(what: str, change: Change, status: int = 1) -> BadInput:
    def made(folder: Path) -> None:
        shutil.copytree(whole_export(), folder / "model")
        change(folder / "model")

    return BadInput(
        group=GROUP,
        what=what,
        made=made,
        reader="lowrank export model --form folded",
        read=command("export", "model", "--form", "folded", "--out", "out", "--no-verify"),
        status=status,
    )


def _note(what: str, change: Callable[[dict[str, Any]], object]) -> BadInput:
    """The note of a folder that was converted."""

    def made(folder: Path) -> None:
        save_file({"a": torch.ones(1)}, folder / WEIGHTS)
        note = {
            "schema_version": 1,
            "form": "folded",
            "sha256": {WEIGHTS: sha256_of(folder / WEIGHTS)},
            "sizes": {},
            "says": "",
        }
        change(note)
        (folder / NOTE).write_text(json.dumps(note))

    return BadInput(
        group=GROUP,
        what=what,
        made=made,
        reader="lowrank.conversion.verify_export",
        read=lambda: str(verify_export(".")),
        status=1,
    )


def _library(what: str, change: Change) -> BadInput:
    def made(folder: Path) -> None:
        save(mlp(), folder)
        change(folder)

    def read() -> str:
        from lowrank import load

        return str(load(mlp(1), "."))

    return BadInput(group=GROUP, what=what, made=made, reader="lowrank.load", read=read, status=1)


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _flip(at: float) -> Callable[[bytes], bytes]:
    def flipped(content: bytes) -> bytes:
        position = int(at * (len(content) - 1))
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]

    return flipped


def _json(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return edit


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Other tensors, and a manifest that agrees with them."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        _json(MANIFEST, lambda m: m.update(_sealed(folder, tensors)))(folder)

    return edit


def _sealed(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    types = {k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()}
    return {"weights_sha256": sha256_of(folder / WEIGHTS), "tensors": types}


def _header(size: int, text: bytes = b"{}") -> bytes:
    return struct.pack("<Q", size) + text


def _huge(folder: Path) -> None:
    """Sixty-four bytes, of a table that says it is a thousand terabytes."""
    entry = {"dtype": "F32", "shape": [2**24, 2**24], "data_offsets": [0, 2**50]}
    text = json.dumps({"bert.pooler.dense.weight": entry}).encode()
    (folder / WEIGHTS).write_bytes(_header(len(text), text) + bytes(64))


def _manifest(what: str, edit: Callable[[dict[str, Any]], object]) -> BadInput:
    return _export(what, _json(MANIFEST, edit))


def _layer(what: str, **fields: Any) -> BadInput:
    return _manifest(what, lambda manifest: manifest["layers"][LAYER].update(fields))


def _metadata(what: str, **fields: Any) -> BadInput:
    return _manifest(what, lambda manifest: manifest["metadata"].update(fields))


def _config(what: str, **fields: Any) -> BadInput:
    return _export(what, _json("config.json", lambda config: config.update(fields)))


def _into_folder(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()


def _in_use(folder: Path) -> None:
    (folder.parent / "out" / "mine").mkdir(parents=True)


def _relink(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{")


CASES = [
    _export("an empty folder", lambda folder: [path.unlink() for path in folder.iterdir()]),
    _export("no folder", shutil.rmtree),
    _export("weights missing", lambda folder: (folder / WEIGHTS).unlink()),
    _export("weights under another name", lambda f: (f / WEIGHTS).rename(f / "weights.bin")),
    _export("weights that are a link to themselves", lambda f: _relink(f / WEIGHTS)),
    _export("weights that are a pickle", lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({}))),
    _export("weights cut in half", _bytes(WEIGHTS, lambda b: b[: len(b) // 2])),
    _export("weights without their last byte", _bytes(WEIGHTS, lambda b: b[:-1])),
    _export("weights with a byte more", _bytes(WEIGHTS, lambda b: b + b"\0")),
    _export("one bit flipped in the weights", _bytes(WEIGHTS, _flip(0.9))),
    _export("weights that are empty", _bytes(WEIGHTS, lambda b: b"")),
    _export("a header of 2^60 bytes", _bytes(WEIGHTS, lambda b: _header(2**60))),
    _export("a tensor of 2^50 bytes", _huge),
    _export("NaN in the weights", _tensors(lambda t: next(iter(t.values())).fill_(torch.nan))),
    _export("a tensor more", _tensors(lambda t: t.update(extra=torch.ones(2)))),
    _export("a tensor less", _tensors(lambda t: t.pop("classifier.bias"))),
    _export("a tensor renamed", _tensors(lambda t: t.update(renamed=t.pop("classifier.bias")))),
    _export("another shape", _tensors(lambda t: t.update({"classifier.bias": torch.ones(4)}))),
    _manifest("a tensor without a shape", lambda m: m["tensors"].update(a=3)),
    _export("manifest missing", lambda folder: (folder / MANIFEST).unlink()),
    _export("manifest cut in half", _bytes(MANIFEST, lambda b: b[: len(b) // 2])),
    _export("manifest that is binary", _bytes(MANIFEST, lambda b: bytes(range(128, 256)))),
    _export("manifest nested 100,000 deep", _bytes(MANIFEST, lambda b: b"[" * 100_000)),
    _metadata("manifest with NaN", a=float("nan")),
    _export("manifest of 65 MiB", _bytes(MANIFEST, lambda b: b + b" " * (65 * 2**20))),
    _export("manifest that is a folder", _into_folder),
    _manifest("manifest of a later version", lambda m: m.update(schema_version=99)),
    _manifest("manifest without layers", lambda m: m.pop("layers")),
    _layer("a rank of 10^12", rank=10**12),
    _layer("a negative rank", rank=-1),
    _layer("a rank that is true", rank=True),
    _layer("a form that is unknown", form="x"),
    _manifest("a layer of nothing", lambda m: m["layers"].update(a=m["layers"][LAYER])),
    _manifest("an alias that is a list", lambda m: m["aliases"].update(a=[1])),
    _manifest("an alias of nothing", lambda m: m["aliases"].update(a="../b")),
    _manifest("a digest that lies", lambda m: m.update(weights_sha256="0" * 64)),
    _metadata("a class to be built", auto_class="exec"),
    _manifest(
        "a target that is a word",
        lambda m: m["metadata"].update(target_density="x"),
    ),
    _metadata("pruned layers of nothing", prunable=["x"]),
    _export("config missing", lambda folder: (folder / "config.json").unlink()),
    _export("config cut in half", _bytes("config.json", lambda b: b[: len(b) // 2])),
    _export("config that is a list", _bytes("config.json", lambda b: b"[]")),
    _export("config nested 100,000 deep", _bytes("config.json", lambda b: b"[" * 100_000)),
    _export(
        "config with a field of another type",
        _json("config.json", lambda c: c.update(hidden_size="wide")),
    ),
    _config("config of a model 10^9 wide", hidden_size=10**9),
    _config("config of 10^9 layers", num_hidden_layers=10**9),
    _config("config of 10^12 tokens", vocab_size=10**12),
    _config("config of another model", model_type="gpt2"),
    _export("config with code to be run", with_code),
    _export("a tokenizer that is damaged", _no_tokenizer),
    _export("a folder in use for the result", _in_use),
    _note("a note that names a file elsewhere", lambda n: n["sha256"].update({"../secret": "0"})),
    _note("a note that names no weights", lambda n: n.update(sha256={})),
    _note("a note with a digest that lies", lambda n: n["sha256"].update({WEIGHTS: "0" * 64})),
    _note("a note of a form that is unknown", lambda n: n.update(form="gguf")),
    _library("weights of another model", lambda f: save(mlp(width=13), f)),
]

"""From the factorized export of a model to any of its forms, and the note that goes with each.

    factorized   small and fast; needs this package beside transformers
    pivoted      the same, smaller still: r x r numbers less for a layer of rank r
    folded       needs transformers only; as large and as slow as the dense model
    onnx         small and fast in ONNX Runtime; no cache of keys and values
    pt2          small and fast in torch alone; no cache of keys and values

`export.json` in a converted folder says which form it is, of which weights it was made, what it
weighs beside the dense model, and the digest of its files.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lowrank.answer import form_of
from lowrank.contract import (
    REFERENCE,
    Verdict,
    load_reference,
    reference_of,
    save_reference,
    verify,
)
from lowrank.counting import Densities, Size
from lowrank.errors import ExportError
from lowrank.export import WEIGHTS, num_stored_parameters, sha256_of
from lowrank.folded import save_folded
from lowrank.graphs import PROGRAM, input_names, save_program, traceable
from lowrank.hf import load_pretrained, load_tokenizer, save_pretrained
from lowrank.manifest import read_manifest
from lowrank.onnx import GRAPH, check_installed, num_stored_floats, save_onnx
from lowrank.pivoted import PivotedLinear
from lowrank.pivoting import pivoted
from lowrank.plain_json import read_json, write_json
from lowrank.sizes import check_density, sizes_of

FORMS = ("factorized", "pivoted", "folded", "onnx", "pt2")
NOTE = "export.json"
NOTE_VERSION = 1
WEIGHT_FILES = {
    "factorized": WEIGHTS,
    "pivoted": WEIGHTS,
    "folded": WEIGHTS,
    "onnx": GRAPH,
    "pt2": PROGRAM,
}


def convert(source: Path | str, form: str, out: Path | str) -> Path:
    """Write one form of a factorized export into a new folder.

    Args:
        source: A folder as written by `lowrank.hf.save_pretrained`.
        form: One of `FORMS`.
        out: Created; must be empty, if it exists.

    Raises:
        ExportError: The source is damaged or larger than was asked for, the model has no such form,
            or a package is missing.
    """
    source, out = Path(source), Path(out)
    if form not in FORMS:
        raise ExportError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: must be a new or empty folder")
    manifest = read_manifest(source)
    metadata = manifest["metadata"]
    small, dense = sizes_of(source)
    check_density(str(source), Densities.of(small, dense), metadata.get("target_density"))
    model: Any = load_pretrained(source)
    tokenizer = load_tokenizer(source) if (source / "tokenizer_config.json").is_file() else None
    has_reference = (source / REFERENCE).is_file()
    reference = load_reference(source) if has_reference else reference_of(model, tokenizer)
    _check_possible(model, form)
    out.mkdir(parents=True, exist_ok=True)
    if form in ("factorized", "pivoted"):
        model = pivoted(model) if form == "pivoted" else model
        save_pretrained(model, out, metadata["auto_class"], tokenizer, metadata)
    elif form == "folded":
        save_folded(model, out, tokenizer)
    else:
        save = save_onnx if form == "onnx" else save_program
        save(model, out, input_names(model, tokenizer))
        config = model.config
        config.__dict__.pop("quantization_config", None)
        config.save_pretrained(out)
        if tokenizer is not None:
            tokenizer.save_pretrained(out)
    save_reference(reference, out)
    _write_note(out, form, manifest, small, dense)
    return out


def verify_export(folder: Path | str) -> tuple[Verdict, dict[str, Any]]:
    """Check an exported folder of any form against its own note, reference and target.

    Returns:
        What its logits showed, and its sizes: `weights` (bytes and parameters, recounted), and for
        the factorized form `densities`, recounted.

    Raises:
        ExportError: The contract is not kept; see `lowrank.contract`.
    """
    folder = Path(folder)
    form = form_of(folder)
    sizes: dict[str, Any] = {}
    if form == "factorized":
        small, dense = sizes_of(folder)
        sizes["densities"] = densities = Densities.of(small, dense)
        target = read_manifest(folder)["metadata"].get("target_density")
        check_density(str(folder), densities, target)
    else:
        _check_digests(folder, read_note(folder))
    sizes["weights"] = _stored(folder, form)
    return verify(folder), sizes


def read_note(folder: Path | str) -> dict[str, Any]:
    """`export.json` of a converted folder."""
    path = Path(folder) / NOTE
    try:
        note = read_json(path)
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file; not a finished export") from None
    except (ValueError, OSError) as error:
        raise ExportError(f"{path}: cannot be read as JSON: {error}") from error
    wanted = {"schema_version", "form", "sha256", "sizes", "says"}
    if not isinstance(note, dict) or not wanted <= note.keys():
        raise ExportError(f"{path}: must have the keys {sorted(wanted)}")
    if note["schema_version"] != NOTE_VERSION:
        raise ExportError(f"{path}: schema version {NOTE_VERSION} is read here")
    if note["form"] not in FORMS:
        raise ExportError(f"{path}: form must be one of {', '.join(FORMS)}, got {note['form']!r}")
    digests = note["sha256"]
    if not isinstance(digests, dict) or WEIGHT_FILES[note["form"]] not in digests:
        raise ExportError(f"{path}: sha256 must name {WEIGHT_FILES[note['form']]}")
    for name in digests:
        if name != Path(name).name:
            raise ExportError(f"{path}: sha256 names files of its own folder, got {name!r}")
    return note


def says(form: str, num_bytes: int, small: Size, dense: Size) -> str:
    """What a form buys, in a sentence with its numbers."""
    whole = dense.num_bytes
    share = f"{num_bytes:,} bytes, {num_bytes / whole:.1%} of the dense model's {whole:,}"
    if form == "factorized":
        return f"{share}; loads in transformers once lowrank-orchestrator is installed"
    if form == "pivoted":
        return (
            f"{share} (the factorized form has {small.num_bytes:,}, loads in the same way and is "
            "faster, for outputs have to be put back into their order here)"
        )
    if form == "folded":
        return (
            f"{share}: on disk, in memory and in time this is the dense model again (the "
            f"factorized form has {small.num_bytes:,} bytes); loads with transformers alone"
        )
    engine = "ONNX Runtime" if form == "onnx" else "torch"
    return f"{share}; runs in {engine} alone, logits only, without a cache for generation"


def _check_possible(model: Any, form: str) -> None:
    """Before anything is written: what would be refused later."""
    if form == "factorized" and any(isinstance(m, PivotedLinear) for m in model.modules()):
        raise ExportError(
            "a pivoted model does not become a factorized one again: take the export it was made of"
        )
    if form == "onnx":
        check_installed()
    if form in ("onnx", "pt2"):
        traceable(model, input_names(model))


def _write_note(
    folder: Path, form: str, manifest: dict[str, Any], small: Size, dense: Size
) -> None:
    weights = WEIGHT_FILES[form]
    files = [path for path in folder.iterdir() if path.name.startswith(weights)]
    stored = _stored(folder, form)
    note = {
        "schema_version": NOTE_VERSION,
        "form": form,
        "says": says(form, stored["bytes"], small, dense),
        "made_of": manifest["weights_sha256"],
        "target_density": manifest["metadata"].get("target_density"),
        "sizes": {
            "this": stored,
            "factorized": asdict(small),
            "dense": asdict(dense),
            "densities": asdict(_densities(folder, form, stored, small, dense)),
        },
        "sha256": {path.name: sha256_of(path) for path in sorted(files)},
    }
    write_json(folder / NOTE, note)


def _densities(
    folder: Path, form: str, stored: dict[str, int], small: Size, dense: Size
) -> Densities:
    """Of what the file holds: a folded model is a dense one in all but its bytes' count, a graph
    has the products of the factorized form (checked when it is made)."""
    if form == "pivoted":
        return Densities.of(sizes_of(folder)[0], dense)
    base = dense if form == "folded" else small
    size = replace(base, num_parameters=stored["parameters"], num_bytes=stored["bytes"])
    return Densities.of(size, dense)


def _stored(folder: Path, form: str) -> dict[str, int]:
    """Bytes and parameters of the weights, from the files."""
    name = WEIGHT_FILES[form]
    num_bytes = sum(p.stat().st_size for p in folder.iterdir() if p.name.startswith(name))
    if form == "onnx":
        count = num_stored_floats(folder / GRAPH)
    elif form == "pt2":
        program = torch.export.load(folder / PROGRAM)
        count = sum(tensor.numel() for tensor in _distinct(program.state_dict))
    else:
        count = num_stored_parameters(folder)
    return {"bytes": num_bytes, "parameters": count}


def _distinct(state: dict[str, Any]) -> list[Any]:
    return list({tensor.untyped_storage().data_ptr(): tensor for tensor in state.values()}.values())


def _check_digests(folder: Path, note: dict[str, Any]) -> None:
    for name, wanted in note["sha256"].items():
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{path}: no such file")
        actual = sha256_of(path)
        if actual != wanted:
            raise ExportError(f"{path}: SHA-256 is {actual}, {NOTE} says {wanted}")

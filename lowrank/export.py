"""Saving and loading: safetensors for the weights, a JSON manifest for the structure.

Nothing is pickled. Loading compares every tensor with the manifest and with the model, and stops
at the first thing that is missing, unexpected, damaged or not finite.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowrank.errors import ExportError
from lowrank.forms import check_indices, check_layer, described_layers, restructured
from lowrank.plain_json import read_json, write_json
from lowrank.pruned import PrunedLayer

T = TypeVar("T")

SCHEMA_VERSION = 3
"""1 had low-rank layers only, without a form; 2 had neither embeddings nor narrow layers, and other
names for factors. Both are still read."""
WEIGHTS = "model.safetensors"
MANIFEST = "lowrank.json"
MANIFEST_TYPES = {
    "schema_version": int,
    "weights_sha256": str,
    "layers": dict,
    "aliases": dict,
    "tensors": dict,
    "metadata": dict,
}


def save(model: nn.Module, folder: Path | str, metadata: dict[str, Any] | None = None) -> Path:
    """Write `model.safetensors` and `lowrank.json`.

    Args:
        model: Compacted (no gates left); dense models are fine too.
        folder: Created if needed.
        metadata: Any JSON value to keep in the manifest.

    Raises:
        ExportError: A gate is left, or a tensor is not finite.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    for name, module in model.named_modules():
        # by class, not by name: mixtures of experts have a `gate` of their own
        if isinstance(module, PrunedLayer):
            raise ExportError(f"{name}: gates are still in the model, call Pruner.finish() first")
    tensors, aliases = distinct_tensors(model)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ExportError(f"{name}: a saved model must be finite, found NaN or infinity")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "layers": described_layers(model),
        "aliases": aliases,
        "tensors": {
            k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()
        },
        "metadata": metadata or {},
    }
    # the manifest comes last: a folder without one was never finished
    write_json(folder / MANIFEST, manifest)
    return folder


def load(model: nn.Module, folder: Path | str) -> nn.Module:
    """Give a freshly built dense model the structure and weights of a saved one.

    Args:
        model: Of the original architecture, with any weights; changed in place.
        folder: As written by `save`.

    Returns:
        The model (another object only if the model is itself a layer).

    Raises:
        ExportError: Anything does not fit; the message names the first offenders.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    tensors = _read_tensors(folder, manifest)
    model = restructured(model, manifest["layers"])
    tensors = named_as_in_model(folder, manifest, tensors)
    check_keys(model, {name: list(tensor.shape) for name, tensor in tensors.items()})
    _check_ties(model, tensors)
    # the file decides the dtype: a bfloat16 export stays one
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in tensors and tensor.dtype != tensors[name].dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)
    model.load_state_dict(tensors, strict=True)
    check_indices(str(folder), model)
    return model


def named_as_in_model(
    folder: Path | str, manifest: dict[str, Any], stored: Mapping[str, T]
) -> dict[str, T]:
    """What is stored, once for every name that a model has for it.

    Args:
        folder: For the message.
        manifest: As `read_manifest` returns it.
        stored: Tensors, or anything else, by the names in the file.

    Raises:
        ExportError: An alias names nothing that is stored.
    """
    named = dict(stored)
    for alias, name in manifest["aliases"].items():
        if name not in stored:
            raise ExportError(
                f"{Path(folder) / MANIFEST}: alias {alias!r} of a missing tensor {name!r}"
            )
        named[alias] = stored[name]
    former = manifest.get("former_names", {})
    return {former.get(name, name): each for name, each in named.items()}


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a saved model, checked for completeness."""
    path = Path(folder) / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file; not a finished lowrank export") from None
    except (ValueError, OSError) as error:
        raise ExportError(f"{path}: cannot be read as JSON: {error}") from error
    if isinstance(manifest, dict):
        manifest.pop("former_names", None)  # ours to say, not the file's
        if manifest.get("schema_version") == 1:
            manifest = _from_version_1(manifest)
        if manifest.get("schema_version") == 2:
            manifest = _from_version_2(manifest)
    if not isinstance(manifest, dict) or not MANIFEST_TYPES.keys() <= manifest.keys():
        raise ExportError(f"{path}: a manifest has the keys {sorted(MANIFEST_TYPES)}")
    for key, wanted in MANIFEST_TYPES.items():
        if not isinstance(manifest[key], wanted):
            raise ExportError(f"{path}: {key} must be of type {wanted.__name__}")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise ExportError(
            f"{path}: schema version {SCHEMA_VERSION} is read here, "
            f"got {manifest['schema_version']}"
        )
    for name, layer in manifest["layers"].items():
        check_layer(f"{path}: layer {name!r}", layer)
    for name, entry in manifest["tensors"].items():
        if not _is_type_and_shape(entry):
            raise ExportError(f"{path}: tensor {name!r} must have a type and a shape")
    for alias, name in manifest["aliases"].items():
        if not isinstance(name, str):
            raise ExportError(f"{path}: alias {alias!r} must name a tensor, got {name!r}")
    return manifest


def _is_type_and_shape(entry: Any) -> bool:
    match entry:
        case [str(), [*sizes]]:
            return all(type(size) is int for size in sizes)
    return False


def _from_version_1(manifest: dict[str, Any]) -> dict[str, Any]:
    layers = manifest.pop("low_rank", None)
    if isinstance(layers, dict):
        layers = {
            name: {"form": "low-rank", **layer} if isinstance(layer, dict) else layer
            for name, layer in layers.items()
        }
    return manifest | {"schema_version": 2, "layers": layers}


def _from_version_2(manifest: dict[str, Any]) -> dict[str, Any]:
    """Factors were layers of their own, `up` and `down`, when there were no embeddings."""
    layers = manifest.get("layers")
    former: dict[str, str] = {}
    for name in layers if isinstance(layers, dict) else ():
        former |= {
            f"{name}.up.weight": f"{name}.weight",
            f"{name}.up.bias": f"{name}.bias",
            f"{name}.down.weight": f"{name}.projection",
        }
    return manifest | {"schema_version": SCHEMA_VERSION, "former_names": former}


def num_stored_parameters(folder: Path | str) -> int:
    """Elements in the weights file, from its header; tied tensors are stored once."""
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as weights:
        return sum(_numel(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity in a tensor; true of whole numbers.

    By its least and greatest value, both NaN if one is: torch.isfinite on a large embedding takes
    more memory than the embedding.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numel(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def distinct_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State without duplicates, and which further names the tied tensors have."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        identity = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and identity in first:
            aliases[name] = first[identity]
        else:
            first[identity] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors, aliases


def _read_tensors(folder: Path, manifest: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path}: not a whole safetensors file: {error}") from error
    found = {k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()}
    if found != manifest["tensors"]:
        wrong = [
            k
            for k in {**found, **manifest["tensors"]}
            if found.get(k) != manifest["tensors"].get(k)
        ]
        raise ExportError(
            f"{path}: differs from the manifest in {_some(wrong)} "
            "(missing, unexpected, or another shape or type)"
        )
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ExportError(f"{path}: {name} holds NaN or infinity")
    actual = sha256_of(path)
    if actual != manifest["weights_sha256"]:
        raise ExportError(
            f"{path}: SHA-256 is {actual}, the manifest says {manifest['weights_sha256']}"
        )
    return tensors


def check_keys(model: nn.Module, shapes: Mapping[str, list[int]]) -> None:
    """Raise ExportError unless a model has tensors of these names and shapes, and no others."""
    state = model.state_dict()
    missing = [name for name in state if name not in shapes]
    unexpected = [name for name in shapes if name not in state]
    reshaped = [n for n, s in shapes.items() if n in state and list(state[n].shape) != s]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if names
    ]
    if problems:
        raise ExportError("the export does not fit this model; " + "; ".join(problems))


def _check_ties(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loading would let the last of tied tensors win in silence."""
    ties = distinct_tensors(model)[1].items()
    apart = [name for name, first in ties if not torch.equal(tensors[name], tensors[first])]
    if apart:
        raise ExportError(
            "the export does not fit this model; "
            f"tied in this model, not in the export: {_some(apart)}"
        )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more

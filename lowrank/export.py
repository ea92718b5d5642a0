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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowrank.errors import ExportError
from lowrank.forms import check_indices, described_layers, restructured
from lowrank.manifest import MANIFEST, SCHEMA_VERSION, named_as_in_model, read_manifest
from lowrank.plain_json import write_json
from lowrank.pruned import PrunedLayer

WEIGHTS = "model.safetensors"


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

"""The four sizes of an exported model, recounted from its files, and those of its dense original.

Matrices that were pruned, all parameters, bytes of the weights file, and multiply-accumulates per
token; divided by the dense model's they are the four densities.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.counting import Densities, Size, macs_per_token, num_matrix_parameters
from lowrank.errors import ExportError
from lowrank.export import WEIGHTS, distinct_tensors, num_stored_parameters
from lowrank.forms import described_layers
from lowrank.graphs import example_inputs, longest_input
from lowrank.hf import load_pretrained
from lowrank.manifest import read_manifest

COUNT_LENGTH = 128
"""Tokens of the one sequence on which multiply-accumulates are counted, or the model's limit: that
of BERT's and GPT's papers' shorter sequences, and what a campaign counts on."""


def sizes_of(folder: Path | str) -> tuple[Size, Size]:
    """Sizes of a factorized export, and of the dense model that its config.json describes.

    Loading is strict: a missing, unexpected or damaged tensor is an error.

    Args:
        folder: As written by `lowrank.hf.save_pretrained`.

    Returns:
        The export's sizes, and the dense model's in the same dtype.
    """
    folder = Path(folder)
    model: Any = load_pretrained(folder)
    small = recount(folder, model, _inputs(model))
    metadata = read_manifest(folder)["metadata"]
    return small, _dense_size(model, metadata["auto_class"], _pruned(model, metadata))


def recount(folder: Path | str, model: nn.Module, inputs: Mapping[str, Any]) -> Size:
    """Counts of an export: parameters and bytes from its file, products from its layers.

    Args:
        folder: As written by `lowrank.hf.save_pretrained`.
        model: Loaded from it.
        inputs: A batch on the model's device, with `input_ids`, for the multiply-accumulates.
    """
    folder = Path(folder)
    metadata = read_manifest(folder)["metadata"]
    names, sparse = _pruned(model, metadata), metadata.get("stores_zeros", False)
    stored = num_matrix_parameters(model, names)
    kept = num_matrix_parameters(model, names, nonzero=sparse)
    return Size(
        num_parameters=num_stored_parameters(folder) - (stored - kept),
        num_prunable=kept,
        num_bytes=(folder / WEIGHTS).stat().st_size,
        macs_per_token=macs_per_token(model, inputs, inputs["input_ids"].numel()),
    )


def _pruned(model: nn.Module, metadata: Mapping[str, Any]) -> list[str]:
    """Names of the matrices that the method might change, or of those that it did."""
    described = described_layers(model)
    names = metadata.get("prunable") or list(described)
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    if not isinstance(names, list) or not all(isinstance(n, str) and n in known for n in names):
        raise ExportError("metadata.prunable must be names of layers of the model")
    # a tied head's factors count under its embedding's name
    return [name for name in names if not described.get(name, {}).get("tied_to")]


def _dense_size(model: Any, auto_class: str, names: list[str]) -> Size:
    import transformers

    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        dense = getattr(transformers, auto_class).from_config(config).eval()
    dense = dense.to(next(model.parameters()).dtype)
    tensors, _ = distinct_tensors(dense)
    inputs = _inputs(dense)
    return Size(
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        num_prunable=num_matrix_parameters(dense, names),
        num_bytes=file_size(tensors),
        macs_per_token=macs_per_token(dense, inputs, inputs["input_ids"].numel()),
    )


def _inputs(model: Any) -> dict[str, Tensor]:
    return example_inputs(model, ("input_ids",), 1, min(COUNT_LENGTH, longest_input(model)))


def file_size(tensors: dict[str, Tensor]) -> int:
    """Bytes of the safetensors file that these tensors would make, without making it."""
    start, header = 0, {"__metadata__": {"format": "pt"}}
    short = {"float": "F", "bfloat": "BF", "int": "I", "uint": "U", "bool": "BOOL"}
    # as safetensors sorts them, for offsets have more digits the later they come
    order = sorted(
        tensors, key=lambda n: (-tensors[n].itemsize, not tensors[n].is_floating_point(), n)
    )
    for name in order:
        tensor = tensors[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        letters = kind.rstrip("0123456789")
        entry: dict[str, Any] = {"dtype": short[letters] + kind[len(letters) :]}
        entry |= {"shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        header[name] = entry
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + start


def check_density(place: str, densities: Densities, target: float | None) -> None:
    """Raise ExportError if the pruned matrices are larger than was asked for."""
    if not isinstance(target, float | int | None):
        raise ExportError(f"{place}: target_density must be a number, got {target!r}")
    if target is not None and densities.prunable > target:
        raise ExportError(
            f"{place}: realized density <= target must hold, got {densities.prunable:.6f} for "
            f"{target}"
        )

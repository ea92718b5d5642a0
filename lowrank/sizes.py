"""The four sizes of an exported model, recounted from its files, and those of its dense original.

Matrices that were pruned, all parameters, bytes of the weights file, and multiply-accumulates per
token; divided by the dense model's they are the four densities.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.counting import macs_per_token, num_matrix_parameters
from lowrank.errors import ExportError
from lowrank.export import WEIGHTS, distinct_tensors, num_stored_parameters, read_manifest
from lowrank.forms import described_layers
from lowrank.graphs import example_inputs, longest_input
from lowrank.hf import load_pretrained

COUNT_LENGTH = 128
"""Tokens of the one sequence on which multiply-accumulates are counted, or the model's limit: that
of BERT's and GPT's papers' shorter sequences, and what a campaign counts on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Of one model."""

    prunable: int
    """Parameters stored for the matrices that were pruned."""
    parameters: int
    bytes: int
    """Of the weights file."""
    macs: float
    """Per token."""

    def over(self, dense: Sizes) -> Densities:
        """The densities: each of these over the dense model's."""
        return Densities(
            prunable=self.prunable / dense.prunable,
            parameters=self.parameters / dense.parameters,
            bytes=self.bytes / dense.bytes,
            macs=self.macs / dense.macs,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Densities:
    """Kept fractions against the dense model."""

    prunable: float
    parameters: float
    bytes: float
    macs: float


def sizes_of(folder: Path | str) -> tuple[Sizes, Sizes]:
    """Sizes of a factorized export, and of the dense model that its config.json describes.

    Loading is strict: a missing, unexpected or damaged tensor is an error.

    Args:
        folder: As written by `lowrank.hf.save_pretrained`.

    Returns:
        The export's sizes, and the dense model's in the same dtype.
    """
    folder = Path(folder)
    metadata = read_manifest(folder)["metadata"]
    model: Any = load_pretrained(folder)
    names = metadata.get("prunable") or list(described_layers(model))
    # a tied head's factors count under its embedding's name
    names = [name for name in names if not _is_tied_head(model, name)]
    sparse = metadata.get("stores_zeros", False)
    stored = num_matrix_parameters(model, names)
    kept = num_matrix_parameters(model, names, nonzero=sparse)
    small = Sizes(
        prunable=kept,
        parameters=num_stored_parameters(folder) - (stored - kept),
        bytes=(folder / WEIGHTS).stat().st_size,
        macs=_macs(model),
    )
    return small, _dense_sizes(model, metadata["auto_class"], names)


def _dense_sizes(model: Any, auto_class: str, names: Sequence[str]) -> Sizes:
    import transformers

    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        dense = getattr(transformers, auto_class).from_config(config).eval()
    dense = dense.to(next(model.parameters()).dtype)
    tensors, _ = distinct_tensors(dense)
    return Sizes(
        prunable=num_matrix_parameters(dense, list(names)),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=file_size(tensors),
        macs=_macs(dense),
    )


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
    if target is not None and densities.prunable > target:
        raise ExportError(
            f"{place}: realized density <= target must hold, got {densities.prunable:.6f} for "
            f"{target}"
        )


def _is_tied_head(model: nn.Module, name: str) -> bool:
    return bool(described_layers(model).get(name, {}).get("tied_to"))


def _macs(model: Any) -> float:
    inputs = example_inputs(model, ("input_ids",), 1, min(COUNT_LENGTH, longest_input(model)))
    return macs_per_token(model, inputs, inputs["input_ids"].numel())

"""Counting whole models: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Counts of one model, recounted from the files on disk."""

    num_parameters: int
    num_prunable: int
    """Parameters stored for the matrices that the method may change."""
    num_bytes: int
    """Of the weights file."""
    macs_per_token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Densities:
    """Kept fractions against the original dense model, 0 < density."""

    prunable: float
    parameters: float
    bytes: float
    macs: float

    @classmethod
    def of(cls, size: Size, dense: Size) -> Densities:
        return cls(
            prunable=size.num_prunable / dense.num_prunable,
            parameters=size.num_parameters / dense.num_parameters,
            bytes=size.num_bytes / dense.num_bytes,
            macs=size.macs_per_token / dense.macs_per_token,
        )


def num_parameters(model: nn.Module) -> int:
    """Distinct parameters: tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_matrix_parameters(model: nn.Module, names: list[str], nonzero: bool = False) -> int:
    """Weights (without biases) stored for the named layers, dense, low-rank or sliced; those that
    a tied output projection shares with its embedding count once, under the embedding's name.

    Args:
        model: Compacted.
        names: Of the layers that were pruned.
        nonzero: Count only weights that are not zero: for unstructured pruning, whose zeros are
            stored.
    """
    total = 0
    for name in names:
        weights = [p for p in model.get_submodule(name).parameters() if p.ndim > 1]
        total += sum(int(w.count_nonzero()) if nonzero else w.numel() for w in weights)
    return total


def macs_per_token(model: nn.Module, inputs: Mapping[str, Any], num_tokens: int) -> float:
    """Multiply-accumulates of one forward pass per token, attention products included.

    Args:
        model: Called as `model(**inputs)` in evaluation mode.
        inputs: One batch.
        num_tokens: Tokens in that batch.
    """
    training = model.training
    model.eval()
    try:
        return count_macs(lambda: model(**inputs)) / num_tokens
    finally:
        model.train(training)


def count_macs(call: Callable[[], object]) -> float:
    """Multiply-accumulates of whatever a call computes.

    Counted by torch's FlopCounterMode (two FLOPs are one multiply-accumulate) on the shapes that
    the pass really has; look-ups in a dense embedding are free, those in a factorized one cost
    the product with the second factor.
    """
    # fused attention kernels hide their products from the counter
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        call()
    return count.get_total_flops() / 2

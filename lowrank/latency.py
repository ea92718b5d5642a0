"""Latency tables: what each layer costs in seconds, dense and at each rank, on this device.

A budget in seconds of layers leaves out attention products, norms and embeddings; it says where
removing rank buys time, which parameters do not: small ranks hardly pay on wide processors, and
odd ones may cost more than even ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.alignment import HARDWARE_MULTIPLE
from lowrank.currency import TableCost
from lowrank.density import LayerShape
from lowrank.linear import LowRankLinear, layer_shape
from lowrank.timing import time_rounds

GRID_POINTS = 12
"""Measured ranks per shape; between them the table is interpolated."""
REPEATS = 9
"""As in the speed measurements: medians of fewer than 7 moved by more than 10 %."""


def latency_tables(
    layers: Mapping[str, nn.Module], positions: Mapping[str, float], num_tokens: int
) -> dict[str, TableCost]:
    """Seconds per pass of every layer at every rank.

    Layers of one shape share one table. Dense and low-rank forms are timed in turns, in inference
    mode, with the number of threads in force.

    Args:
        layers: Dense layers, by name.
        positions: Rows that each layer multiplies per token (`positions_per_token`).
        num_tokens: Tokens of the pass that is timed.
    """
    known: dict[tuple[LayerShape, int], TableCost] = {}
    tables = {}
    for name, layer in layers.items():
        rows = max(1, round(positions[name] * num_tokens))
        key = (layer_shape(layer), rows)
        if key not in known:
            known[key] = _measure(layer, rows)
        tables[name] = known[key]
    return tables


def measured_ranks(full_rank: int) -> list[int]:
    """Ranks to time: multiples of `HARDWARE_MULTIPLE`, for an interpolated table should not promise
    less than its neighbours above; and the full rank."""
    points = np.linspace(HARDWARE_MULTIPLE, full_rank, GRID_POINTS)
    ranks = {max(1, int(p) // HARDWARE_MULTIPLE * HARDWARE_MULTIPLE) for p in points}
    return sorted({min(rank, full_rank) for rank in ranks} | {full_rank})


def _measure(layer: nn.Module, rows: int) -> TableCost:
    shape = layer_shape(layer)
    weight = next(layer.parameters())
    x = torch.randn(rows, shape.in_features, device=weight.device, dtype=weight.dtype)
    ranks = measured_ranks(shape.full_rank)
    forms = [layer] + [
        LowRankLinear(
            shape.in_features,
            shape.out_features,
            rank,
            bias=layer.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        for rank in ranks
    ]
    synchronize = torch.cuda.synchronize if weight.device.type == "cuda" else None
    with torch.inference_mode():
        samples = time_rounds([_call(form, x) for form in forms], REPEATS, synchronize)
    dense, *factorized = [median(sample) for sample in samples]
    every_rank = np.arange(1, shape.full_rank + 1)
    return TableCost.of_factors(np.interp(every_rank, ranks, factorized).tolist(), dense)


def _call(form: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: form(x)

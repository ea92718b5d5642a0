"""Where the time goes, layer by layer: every distinct compressed layer alone, beside its dense one.

What is left of a pass after its matrix layers (attention products, norms, activations, look-ups) no
factorization makes faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.benchmark.phases import Work, call_of, device_of, make_inputs
from lowrank.benchmark.subjects import Subject
from lowrank.counting import count_macs
from lowrank.embedding import LowRankEmbedding
from lowrank.forms import described_layers
from lowrank.probe import watching
from lowrank.timing import check_repeats, paired_ratio, synchronizer, time_rounds

Key = tuple[str, ...]


def measure_layers(
    subject: Subject, work: Work, repeats: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Time each distinct shape of a compressed layer against the dense layer of the same name.

    Args:
        subject: The two models.
        work: Says how many rows the layers multiply: those of the last pass, which when decoding
            is that of one token per row.
        repeats: Rounds, >= `MIN_REPEATS`.
        seed: Of inputs and bootstrap.

    Returns:
        Per kind, JSON: form, shape, rank, how many layers there are, rows, medians of one layer in
        ms, speed-up with interval, the ratio of multiply-accumulates. Embeddings, which multiply
        little, are left out.
    """
    check_repeats(repeats)
    small = {
        name: module
        for name, module in subject.compressed.named_modules()
        if name in subject.layers and not isinstance(module, LowRankEmbedding)
    }
    inputs = _last_inputs(subject.compressed, small, work, seed)
    kinds: dict[Key, list[str]] = {}
    described = described_layers(subject.compressed)
    for name, x in inputs.items():
        layer = described[name]
        sizes = tuple(f"{key}={value}" for key, value in layer.items())
        kinds.setdefault((*sizes, str(tuple(x.shape))), []).append(name)
    return [
        _kind(subject, names, described[names[0]], inputs[names[0]], repeats, seed)
        for names in kinds.values()
    ]


def with_rest(cell: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    """What of the eager passes is spent in the layers above, and what outside; ms, JSON.

    The layers are timed alone, so the two need not add up exactly: what a cache holds differs.
    """
    passes = cell["new_tokens"] or 1
    found = {}
    for side in ("dense", "compressed"):
        whole = next(
            row["median_ms"]
            for row in cell["rows"]
            if (row["side"], row["form"]) == (side, "eager")
        )
        inside = sum(kind[f"{side}_ms"] * kind["count"] for kind in layers)
        found[side] = {
            "pass_ms": whole / passes,
            "layers_ms": inside,
            "outside_ms": whole / passes - inside,
            "outside_share": 1 - inside * passes / whole,
        }
    return found


def _last_inputs(
    model: Any, layers: dict[str, nn.Module], work: Work, seed: int
) -> dict[str, Tensor]:
    """What each layer is given in the last pass of the work; those that are not run are missing."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        seen[name] = x

    inputs = make_inputs(model, work, seed)
    with torch.inference_mode():
        call = call_of(model, model, work, inputs)
        with watching(layers, keep):
            call()
    return seen


def _kind(
    subject: Subject,
    names: list[str],
    described: dict[str, Any],
    x: Tensor,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    dense = subject.dense.get_submodule(names[0])
    small = subject.compressed.get_submodule(names[0])
    if described["form"] == "narrow":
        # a layer of fewer features: its own input is narrower than the dense one's
        wide = torch.randn(*x.shape[:-1], described["in_features"]).to(x)
    else:
        wide = x
    calls = [_call(dense, wide), _call(small, x)]
    macs = [count_macs(call) for call in calls]
    with torch.inference_mode():
        first, second = time_rounds(calls, repeats, synchronizer(device_of(dense)))
    return {
        "form": described["form"],
        "in_features": described["in_features"],
        "out_features": described["out_features"],
        "rank": described.get("rank"),
        "count": len(names),
        "example": names[0],
        "rows": x.numel() // x.shape[-1],
        "dense_ms": 1e3 * median(first),
        "compressed_ms": 1e3 * median(second),
        "speedup": asdict(paired_ratio(first, second, seed)),
        "promised": macs[0] / macs[1] if macs[1] else None,
    }


def _call(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: layer(x)

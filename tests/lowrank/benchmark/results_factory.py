"""Results with chosen figures."""

from __future__ import annotations

from typing import Any


def ratio(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


def row(side: str, form: str, median_ms: float | None, **fields: Any) -> dict[str, Any]:
    known = {
        "side": side, "form": form, "samples_ms": [], "median_ms": median_ms, "num_tokens": 32,
        "tokens_per_s": median_ms and 32 / median_ms * 1e3, "speedup": ratio(1, 1, 1),
        "promised": None, "attained": None, "deviation": 0.0, "reason": "", "is_faster": False,
    }  # fmt: skip
    return known | fields


def result(compressed_ms: float = 5.0, **fingerprint: Any) -> dict[str, Any]:
    """One encoder, one cell, four rows."""
    fast = {"speedup": ratio(2.0, 1.9, 2.1), "promised": 2.5, "attained": 0.8}
    cell: dict[str, Any] = {
        "phase": "forward", "batch": 1, "length": 32, "new_tokens": 0,
        "macs_per_token": {"dense": 250.0, "compressed": 100.0}, "promised": 2.5,
        "rows": [
            row("dense", "eager", 10.0, promised=1.0, attained=1.0),
            row("compressed", "eager", compressed_ms, **fast),
            row("compressed", "folded", 10.1, speedup=ratio(0.99, 0.95, 1.03)),
            row("compressed", "int8", 20.0, speedup=ratio(0.5, 0.45, 0.55), deviation=0.01),
            row("compressed", "compiled", None, speedup=None, reason="no compiler"),
        ],
        "best": {"dense": "eager", "compressed": "eager", "speedup": ratio(2.0, 1.9, 2.1),
                 "attained": 0.8, "is_faster": True},
        "layers": [{"form": "low-rank", "in_features": 32, "out_features": 16, "rank": 4,
                    "count": 12, "example": "a.b", "rows": 32, "dense_ms": 0.5,
                    "compressed_ms": 0.25, "speedup": ratio(0.8, 0.7, 0.9), "promised": 2.5}],
        "operators": {side: {"groups": {"matrix": 0.7, "attention": 0.1, "other": 0.2},
                             "operators": [{"name": name, "share": 0.7, "calls": 12.0}]}
                      for side, name in (("dense", "aten::addmm"), ("compressed", "aten::mm"))},
    }  # fmt: skip
    cell["rest"] = {
        side: {"pass_ms": ms, "layers_ms": ms / 2, "outside_ms": ms / 2, "outside_share": 0.5}
        for side, ms in (("dense", 10.0), ("compressed", 5.0))
    }
    sizes = {"dense_parameters": 1000, "compressed_parameters": 500, "compressed_layers": 12,
             "density_of_these": 0.39}  # fmt: skip
    resources = {
        "dense": {"file_bytes": 2**21, "load_s": 0.5, "loads_s": [0.5], "start_bytes": 2**20,
                  "load_peak_bytes": 3 * 2**20, "peak_bytes": 4 * 2**20},
        "compressed int8": {"reason": "no kernels"},
    }  # fmt: skip
    subject = {"name": "a|b", "kind": "encoder", "sizes": sizes, "cells": [cell], "left_out": [],
               "resources": resources}  # fmt: skip
    return {
        "schema_version": 1,
        "fingerprint": {"cpu": "X", "threads": 2, "dtype": "float32"} | fingerprint,
        "settings": {"repeats": 9, "seed": 0, "forms": ["eager", "folded", "int8", "compiled"]},
        "subjects": [subject],
    }

"""Where the time of an eager pass goes, operator by operator, as torch's profiler sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lowrank.benchmark.phases import Work, call_of, device_of, make_inputs

PASSES = 3
"""Under the profiler, after one that warms up: shares, not times, are what is read off."""
MOST = 12
"""Operators listed; the rest is summed."""
MATRIX = ("aten::addmm", "aten::mm", "aten::linear", "aten::matmul", "aten::mkldnn")
ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::scaled_dot_product")
ATTENTION_KERNELS = ("aten::_flash_attention", "aten::_efficient_attention", "aten::_softmax")


def measure_operators(model: Any, work: Work, seed: int = 0) -> dict[str, Any]:
    """Shares of the time spent in operators themselves, on the CPU or in a GPU's kernels.

    Args:
        model: Run in eager mode.
        work: What it is run on.
        seed: Of the inputs.

    Returns:
        JSON: `groups`, the shares of `matrix` (products of matrix layers), `attention` and
        `other`; `operators`, the largest ones with share and calls per pass.
    """
    cuda = device_of(model).type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with torch.inference_mode():
        call = call_of(model, model, work, make_inputs(model, work, seed))
        call()
        with profile(activities=activities) as seen:
            for _ in range(PASSES):
                call()
            if cuda:
                torch.cuda.synchronize()
    time = "self_device_time_total" if cuda else "self_cpu_time_total"
    return summarize(
        (event.key, getattr(event, time), event.count)
        for event in seen.key_averages()
        if event.key.startswith(("aten::", "quantized::", "mkldnn"))
    )


def summarize(events: Iterable[tuple[str, float, int]]) -> dict[str, Any]:
    """Groups and largest operators.

    Args:
        events: Name, time in any unit, and number of calls of every operator.
    """
    taken = sorted(events, key=lambda event: -event[1])
    total = sum(time for _, time, _ in taken) or 1.0
    groups = {"matrix": 0.0, "attention": 0.0, "other": 0.0}
    for name, time, _ in taken:
        groups[group_of(name)] += time / total
    return {
        "groups": groups,
        "operators": [
            {"name": name, "share": time / total, "calls": count / PASSES}
            for name, time, count in taken[:MOST]
        ],
    }


def group_of(name: str) -> str:
    """`matrix`, `attention` or `other`."""
    if name.startswith((*ATTENTION, *ATTENTION_KERNELS)):
        return "attention"
    return "matrix" if name.startswith(MATRIX) else "other"

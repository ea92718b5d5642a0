"""Memory and load time of exported models, each in a process of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from lowrank.benchmark.phases import Work, device_of
from lowrank.benchmark.presets import AUTO_CLASS
from lowrank.benchmark.subjects import Subject
from lowrank.errors import ExportError, LowRankError
from lowrank.export import WEIGHTS
from lowrank.folded import folded
from lowrank.fresh import run_fresh
from lowrank.hf import save_pretrained
from lowrank.int8 import num_int8_bytes, quantize_int8

LOADS = 3
"""Processes per model; the file is in the system's cache from the second one on at the latest."""


def measure_resources(subject: Subject, work: Work, loads: int = LOADS) -> dict[str, Any]:
    """Per form: bytes on disk, median seconds to load, peak memory of loading and of one pass.

    Args:
        subject: Its models are saved to a temporary folder unless they come from folders.
        work: The pass; of a decoder, the prompt's.
        loads: Processes per model.

    Returns:
        JSON, by form: `dense`, `compressed`, and `folded` where the model has such a form; of
        `int8` forms the bytes that a file would hold: a quantized model is made in memory, and not
        loaded.
    """
    found: dict[str, Any] = {}
    with _folders(subject) as folders:
        for form, folder in folders.items():
            runs = [_fresh(folder, subject, work) for _ in range(loads)]
            found[form] = {
                "file_bytes": (folder / WEIGHTS).stat().st_size,
                "load_s": median(run["load_s"] for run in runs),
                "loads_s": [run["load_s"] for run in runs],
                **{
                    key: max(run[key] for run in runs)
                    for key in ("start_bytes", "load_peak_bytes", "peak_bytes", "device_peak_bytes")
                    if key in runs[0]
                },
            }
    for form, model in (("dense int8", subject.dense), ("compressed int8", subject.compressed)):
        if device_of(model).type == "cpu" and next(model.parameters()).dtype == torch.float32:
            try:
                found[form] = {"file_bytes": num_int8_bytes(quantize_int8(model))}
            except LowRankError as error:
                found[form] = {"reason": str(error)}
    return found


@contextmanager
def _folders(subject: Subject) -> Iterator[dict[str, Path]]:
    """Exports of the two models and of the folded one."""
    auto_class = AUTO_CLASS[subject.kind]
    with tempfile.TemporaryDirectory(prefix="lowrank-bench-") as root:
        models: dict[str, nn.Module] = {}
        folders: dict[str, Path] = {}
        if subject.folders is not None:
            folders = dict(zip(("dense", "compressed"), subject.folders, strict=True))
        else:
            models = {"dense": subject.dense, "compressed": subject.compressed}
        with suppress(ExportError):
            models["folded"] = folded(subject.compressed)
        for form, model in models.items():
            folders[form] = save_pretrained(model, Path(root) / form, auto_class)
        yield folders


def _fresh(folder: Path, subject: Subject, work: Work) -> dict[str, Any]:
    device = device_of(subject.dense)
    command = [
        "-m",
        "lowrank.benchmark.fresh",
        str(folder.absolute()),
        f"--auto-class={AUTO_CLASS[subject.kind]}",
        f"--dtype={str(next(subject.dense.parameters()).dtype).removeprefix('torch.')}",
        f"--device={device}",
        f"--threads={torch.get_num_threads()}",
        f"--phase={'forward' if subject.kind == 'encoder' else 'prefill'}",
        f"--batch={work.batch}",
        f"--length={work.length}",
    ]
    done = run_fresh(command)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LowRankError(f"{folder} could not be loaded in a fresh process: {last}")
    return json.loads(done.stdout.splitlines()[-1])

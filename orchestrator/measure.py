"""Speed of exported models against their dense reference, alone on the machine, in float32 and
in 8-bit integers."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lowrank.errors import LowRankError
from lowrank.hf import load_pretrained
from lowrank.int8 import num_int8_bytes, quantize_int8
from lowrank.timing import Pair, fingerprint, forward_pair, num_threads, quartiles
from orchestrator.bucket.places import borrowed, here
from orchestrator.data.prepare import PreparedData
from orchestrator.records import Int8, Speed
from orchestrator.spec_after import MeasureSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.tasks import TrainingTask, make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers

logger = logging.getLogger(__name__)


def measure_speed(
    dense: str,
    compressed: str,
    task_spec: AnyTask,
    data: str,
    measure: MeasureSpec,
) -> list[Speed]:
    """One row per batch size: both models loaded from their exports, timed in turns.

    Args:
        dense: Place (`bucket.places`) of the dense export.
        compressed: Of the compressed export.
        task_spec: Says what inputs look like.
        data: Of the prepared data.
        measure: Shapes, repeats, threads.
    """
    task = make_task(task_spec, PreparedData.open(Path(here(data))), seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with borrowed(compressed) as small:
        models = [load_pretrained(folder).to(device) for folder in (here(dense), small)]
    with num_threads(measure.threads):
        return [_row(task, models, batch, measure, device) for batch in sorted(set(measure.batch))]


def measure_int8(
    dense: str, exported: str, task_spec: AnyTask, data: str, measure: MeasureSpec
) -> Int8 | str:
    """An exported model in 8-bit integers, or the reason why it cannot be.

    Args:
        dense: Place of the dense export, which runs in float32.
        exported: Of the export to quantize; the dense one too may be.
        task_spec: Says what inputs look like.
        data: Of the prepared data.
        measure: Shapes, repeats, threads.
    """
    if torch.cuda.is_available():
        return "a GPU has no such kernels, and this machine's CPU is not what it is for"
    task = make_task(task_spec, PreparedData.open(Path(here(data))), seed=0)
    try:
        with borrowed(exported) as folder:
            quantized = quantize_int8(load_pretrained(folder))
    except LowRankError as error:
        return str(error)
    models, device = [load_pretrained(here(dense)), quantized], torch.device("cpu")
    with num_threads(measure.threads):
        test = evaluate(quantized, task, LocalWorkers(), "test")
        speed = [
            _row(task, models, batch, measure, device, torch.qint8)
            for batch in sorted(set(measure.batch))
        ]
    finite = {name: value for name, value in test.items() if math.isfinite(value)}
    return Int8(test=finite, num_bytes=num_int8_bytes(quantized), speed=speed)


def _row(
    task: TrainingTask,
    models: list[Any],
    batch: int,
    measure: MeasureSpec,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Speed:
    inputs = {k: v.to(device) for k, v in task.example_inputs(batch, measure.length).items()}
    pair = forward_pair(models[0], models[1], inputs, measure.repeats)
    return to_speed(pair, batch, inputs["input_ids"].shape[1], fingerprint(device, dtype))


def to_speed(pair: Pair, batch: int, length: int, print_: dict[str, Any]) -> Speed:
    """Medians, quartiles and throughputs of one timed shape."""
    low, high = pair.speedup_quartiles
    dense_s, compressed_s = median(pair.first_s), median(pair.second_s)
    tokens = batch * length
    return Speed(
        batch=batch,
        length=length,
        dense_ms=dense_s * 1e3,
        compressed_ms=compressed_s * 1e3,
        speedup=pair.speedup,
        speedup_low=low,
        speedup_high=high,
        dense_spread_ms=_iqr_ms(pair.first_s),
        compressed_spread_ms=_iqr_ms(pair.second_s),
        throughput_dense=tokens / dense_s,
        throughput_compressed=tokens / compressed_s,
        repeats=len(pair.first_s),
        fingerprint=print_,
    )


def _iqr_ms(values: list[float]) -> float:
    low, high = quartiles(values)
    return (high - low) * 1e3

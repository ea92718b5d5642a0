"""Speed of exported models against their dense reference, alone on the machine."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lowrank.bench import Pair, fingerprint, forward_pair, num_threads, quartiles
from lowrank.hf import load_pretrained
from orchestrator.data.prepare import PreparedData
from orchestrator.records import Speed
from orchestrator.spec import AnyTask, MeasureSpec
from orchestrator.tasks import TrainingTask, make_task

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
        dense: Folder of the dense export.
        compressed: Folder of the compressed export.
        task_spec: Says what inputs look like.
        data: Folder of the prepared data.
        measure: Shapes, repeats, threads.
    """
    task = make_task(task_spec, PreparedData.open(Path(data)), seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [load_pretrained(folder).to(device) for folder in (dense, compressed)]
    with num_threads(measure.threads):
        return [_row(task, models, batch, measure, device) for batch in sorted(set(measure.batch))]


def _row(
    task: TrainingTask, models: list[Any], batch: int, measure: MeasureSpec, device: torch.device
) -> Speed:
    inputs = {k: v.to(device) for k, v in task.example_inputs(batch, measure.length).items()}
    pair = forward_pair(models[0], models[1], inputs, measure.repeats)
    return to_speed(pair, batch, inputs["input_ids"].shape[1], fingerprint(device, torch.float32))


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

"""From records to the objectives of a front. The one place where a metric's sign is normalised:
every objective is a loss, smaller is better, always."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.front.dominance import Losses
from orchestrator.records import ModelRecord


def loss_values(
    records: Sequence[ModelRecord], dense: ModelRecord, batch: int | None = None
) -> Losses:
    """The objectives of a task's models.

    Args:
        records: finished models of one task.
        dense: their reference.
        batch: of the latency; by default the largest that any record has measured.

    Returns:
        Shape [n, 3]: loss of validation quality against dense in the metric's unit (negative is
        better than dense), parameters of the whole model, paired latency in milliseconds. One
        that is missing is NaN; if none was measured, the column is left out: [n, 2].
    """
    for record in records:
        if record.metric != dense.metric:
            raise ValueError(
                f"models of one front share a metric, got {record.metric.name!r} "
                f"and {dense.metric.name!r} (dense)"
            )
    sign = -1.0 if dense.metric.higher_is_better else 1.0
    batch = largest_batch(records) if batch is None else batch
    latencies = paired_latencies_ms(records, batch)
    rows = [
        (sign * (r.quality - dense.quality), r.size.num_parameters, latency)
        for r, latency in zip(records, latencies, strict=True)
    ]
    losses = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return losses[:, :2] if np.isnan(losses[:, 2]).all() else losses


def paired_latencies_ms(records: Sequence[ModelRecord], batch: int | None) -> list[float]:
    """Latencies that compare across models measured at different times.

    The machine's load moves the raw latency of a model, but hardly its ratio to the dense model
    timed beside it: latency = median dense latency over all records / speed-up. NaN where a model
    was not measured at this batch.
    """
    dense = [row.dense_ms for record in records for row in record.speed if row.batch == batch]
    if not dense:
        return [math.nan] * len(records)
    reference = float(np.median(dense))
    return [reference / record.speedup(batch) for record in records]


def largest_batch(records: Sequence[ModelRecord]) -> int | None:
    """The largest batch at which any record was measured."""
    return max((row.batch for record in records for row in record.speed), default=None)

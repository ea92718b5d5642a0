"""Models in 8-bit integers, alone on dense and on top of the compared methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from orchestrator.records import ModelRecord
from orchestrator.report_methods import mean_and_spread
from orchestrator.results.read import Results
from orchestrator.results.tables import speed_of
from orchestrator.results.text import NONE, Pictures, free, signed, table
from orchestrator.wording import facts, metric_name, number, percent


def integers(results: Results, pictures: Pictures) -> list[str]:
    """Quality, bytes and speed; nothing where no model was quantized."""
    groups = [("dense", "1", [results.dense])]
    for method, row in results.runs().items():
        for density in results.densities:
            if density in row:
                groups.append((free(method), f"{density:g}", row[density].trials))
    measured = [
        (name, density, found)
        for name, density, trials in groups
        if (found := [trial for trial in trials if trial.int8 is not None])
    ]
    if not measured:
        return []
    every = [s for *_, trials in measured for t in trials if t.int8 for s in t.int8.speed]
    batches = sorted({row.batch for row in every})
    prints = {facts(row.fingerprint): None for row in every}
    head = ["method", "density", f"test {metric_name(results.metric)}", "change", "bytes"]
    head += [f"speed, batch {batch}" for batch in batches]
    body = [
        [name, density, *_cells(results, trials, batches)] for name, density, trials in measured
    ]
    return [
        "Linear layers in 8-bit integers, a scale per output feature, inputs quantized batch by "
        "batch, without further training; embeddings and all else stay float32. Change: to the "
        "same models in float32, in percent of dense. Bytes: what the file would have, in "
        "brackets as a part of dense in float32. Speed: against dense in float32, medians over "
        f"the seeds with quartiles, on {' and on '.join(free(text) for text in prints)}.",
        table(head, body),
    ]


def _cells(results: Results, trials: Sequence[ModelRecord], batches: Sequence[int]) -> list[str]:
    metric, dense = results.metric, results.dense
    found = [(trial, trial.int8) for trial in trials if trial.int8 is not None]
    values = [int8.test.get(metric, math.nan) for _, int8 in found]
    finite = all(math.isfinite(value) for value in values)
    before, reference = fmean(trial.test[metric] for trial, _ in found), dense.test[metric]
    change = (fmean(values) - before) / abs(reference) if reference else math.nan
    size = median(int8.num_bytes for _, int8 in found)
    shown = mean_and_spread(values) if len(values) > 1 else number(values[0])
    return [
        shown if finite else NONE,
        signed(change, percent) if finite else NONE,
        f"{size:,.0f} ({percent(size / dense.size.num_bytes)})",
        *(
            speed_of([s for _, int8 in found for s in int8.speed if s.batch == batch])
            for batch in batches
        ),
    ]

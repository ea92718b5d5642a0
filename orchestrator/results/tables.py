"""Quality and cost of the compared methods: each section is a list of Markdown blocks, or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median, stdev

from orchestrator import wording
from orchestrator.records import MET, Densities, ModelRecord, Speed
from orchestrator.report_methods import Runs, mean_and_spread
from orchestrator.results.read import Results, is_structured
from orchestrator.results.text import NONE, Pictures, free, picture, seconds, signed, table
from orchestrator.wording import metric_name, number, percent, ratio, three_digits

OFF_TARGET = MET
"""A realized density is printed if it is further than this from the one that was asked for."""


def quality(results: Results, pictures: Pictures) -> list[str]:
    """Test and validation per method and density, against dense."""
    if not results.runs():
        return []
    name, dense = metric_name(results.metric), results.dense
    better = "Higher" if dense.metric.higher_is_better else "Lower"
    apart = [free(m) for m in results.methods if not is_structured(results.plan_of(m).method)]
    note = f", single weights ({', '.join(apart)}) apart" if apart else ""
    return [
        f"{name[0].upper()}{name[1:]}, mean ± standard deviation over the seeds (number of seeds); "
        "below it the difference to dense in percent of dense, and the realized density where it "
        f"is more than {OFF_TARGET:g} from the one asked for. {better} is better. Bold: the best "
        f"at a density{note}.",
        f"Test; dense is {number(dense.test[results.metric])}:",
        _quality_table(results, lambda runs: runs.test, dense.test[results.metric], True),
        f"Validation; dense is {number(dense.quality)}:",
        _quality_table(results, lambda runs: runs.validation, dense.quality, False),
        *picture(pictures, "quality"),
        "Bars are one standard deviation; a triangle at the edge is a value off the scale.",
    ]


def _quality_table(
    results: Results, of: Callable[[Runs], list[float]], dense: float, is_test: bool
) -> str:
    rows, best = results.runs(), best_methods(results, of) if is_test else {}

    def cell(method: str, density: float) -> str:
        runs = rows[method].get(density)
        if runs is None or not of(runs):
            return NONE
        text = mean_and_spread(of(runs))
        parts = [f"**{text}**" if method in best.get(density, ()) else text]
        parts.append(signed((fmean(of(runs)) - dense) / abs(dense) if dense else math.nan, percent))
        realized = realized_density(results, runs)
        if is_test and abs(realized - density) > OFF_TARGET:
            parts.append(f"density {realized:.4f}")
        return "<br>".join(parts)

    head = ["method", *(f"density {density:g}" for density in results.densities)]
    body = [[free(m), *(cell(m, density) for density in results.densities)] for m in rows]
    return table(head, body)


def best_methods(results: Results, of: Callable[[Runs], list[float]]) -> dict[float, list[str]]:
    """At each density the structured methods with the best mean, several if they are equal."""
    sign = -1 if results.dense.metric.higher_is_better else 1
    best: dict[float, list[str]] = {}
    for density in results.densities:
        losses = {
            method: sign * fmean(of(row[density]))
            for method, row in results.runs().items()
            if density in row and of(row[density])
            if is_structured(results.plan_of(method).method)
        }
        best[density] = [m for m, loss in losses.items() if loss == min(losses.values())]
    return best


def realized_density(results: Results, runs: Runs) -> float:
    """Of the prunable matrices, mean over the seeds."""
    return fmean(Densities.of(t.size, results.dense.size).prunable for t in runs.trials)


def paired(results: Results, pictures: Pictures) -> list[str]:
    """Differences to the reference method, seed by seed."""
    rows, metric = results.runs(), results.metric
    reference = results.reference
    if reference not in rows or len(rows) < 2:
        return []

    def cell(method: str, density: float) -> str:
        values = paired_differences(rows[method].get(density), rows[reference].get(density), metric)
        if not values:
            return NONE
        spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
        return f"{signed(fmean(values), three_digits)}{spread} ({len(values)})"

    better = "negative" if results.dense.metric.higher_is_better else "positive"
    head = ["method", *(f"density {density:g}" for density in results.densities)]
    body = [
        [free(m), *(cell(m, density) for density in results.densities)]
        for m in rows
        if m != reference
    ]
    return [
        f"Test {metric_name(metric)} of a method minus that of {free(reference)}, mean ± standard "
        f"deviation over the seeds that both have (number of these): runs with one seed see the "
        f"same batches. Where it is {better}, {free(reference)} is better.",
        table(head, body),
    ]


def paired_differences(runs: Runs | None, others: Runs | None, metric: str) -> list[float]:
    """Test figures of the first minus those of the second, for every seed that both have."""
    if runs is None or others is None:
        return []
    mine, theirs = ({t.seed: t.test[metric] for t in each.trials} for each in (runs, others))
    return [mine[seed] - theirs[seed] for seed in mine if seed in theirs]


# --------------------------------------------------------------------------- cost


def cost(results: Results, pictures: Pictures) -> list[str]:
    """What training takes, and what the models take afterwards."""
    rows = results.runs()
    if not rows:
        return []
    batches = sorted({s.batch for trial in results.result.trials for s in trial.speed})
    head = ["method", "density", "steps", "seconds", f"of {free(results.reference)}"]
    head += ["parameters", "bytes", "MACs per token", *(f"speed, batch {b}" for b in batches)]
    dense = results.dense
    trained = [f"{num_steps(dense):,}", seconds(dense.train_seconds), ""]
    body = [["dense", "1", *trained, *_size(dense), *([""] * len(batches))]]
    for method, row in rows.items():
        for density in results.densities:
            if density in row:
                reference = rows.get(results.reference, {}).get(density)
                trained = [f"{density:g}", *_training(row[density], reference)]
                speeds = [_speed(row[density], batch) for batch in batches]
                body.append([free(method), *trained, *_sizes(results, row[density]), *speeds])
    words = ["Medians over the seeds; in brackets, parts of dense."]
    if batches:
        words.append(
            "Speed is dense time / compressed time of one forward pass, with quartiles: "
            f"{_timing(results)}."
        )
    if results.spec.resources_of(results.task).concurrent_trials > 1:
        words.append("Training times are wall-clock times, with other trials beside them.")
    return [" ".join(words), table(head, body), *picture(pictures, "cost")]


def num_steps(record: ModelRecord) -> int:
    """Training steps that a model took, by its curve."""
    return record.curve[-1].step if record.curve else 0


def median_seconds(runs: Runs) -> float:
    return median(trial.train_seconds for trial in runs.trials)


def _training(runs: Runs, reference: Runs | None) -> list[str]:
    steps = median(num_steps(trial) for trial in runs.trials)
    relative = median_seconds(runs) / median_seconds(reference) if reference else math.nan
    return [
        f"{steps:,.0f}",
        seconds(median_seconds(runs)),
        NONE if math.isnan(relative) else ratio(relative),
    ]


def _size(dense: ModelRecord) -> list[str]:
    size = dense.size
    return [f"{size.num_parameters:,}", f"{size.num_bytes:,}", f"{size.macs_per_token:,.0f}"]


def _sizes(results: Results, runs: Runs) -> list[str]:
    def cell(of: Callable[[ModelRecord], float]) -> str:
        value = median(of(trial) for trial in runs.trials)
        return f"{value:,.0f} ({percent(value / of(results.dense))})"

    return [
        cell(lambda trial: trial.size.num_parameters),
        cell(lambda trial: trial.size.num_bytes),
        cell(lambda trial: trial.size.macs_per_token),
    ]


def _speed(runs: Runs, batch: int) -> str:
    return speed_of([row for trial in runs.trials for row in trial.speed if row.batch == batch])


def speed_of(rows: Sequence[Speed]) -> str:
    """Median speed-up and quartiles of one shape over several models."""
    if not rows:
        return NONE
    middle, low, high = (
        median(getattr(row, name) for row in rows)
        for name in ("speedup", "speedup_low", "speedup_high")
    )
    return f"{ratio(middle)} ({low:.2f}-{high:.2f})"


def _timing(results: Results) -> str:
    rows = [row for trial in results.result.trials for row in trial.speed]
    lengths = " or ".join(str(n) for n in sorted({row.length for row in rows}))
    repeats = " or ".join(str(n) for n in sorted({row.repeats for row in rows}))
    prints = {wording.facts(row.fingerprint): None for row in rows}
    where = " and on ".join(free(text) for text in prints)
    return f"sequences of {lengths} tokens, {repeats} pairs per model, on {where}"

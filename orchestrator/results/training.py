"""How the compared models came about: what was tuned, what the gates did, where ranks stayed."""

from __future__ import annotations

import math

from orchestrator import wording
from orchestrator.method_search import TrialPlan
from orchestrator.records import MET, ModelRecord
from orchestrator.results.ranks import share_by_kind
from orchestrator.results.read import Results
from orchestrator.results.text import NONE, Pictures, free, picture, table
from orchestrator.wording import metric_name, number, percent


def tuning(results: Results, pictures: Pictures) -> list[str]:
    """Every draw of the methods that had several."""
    body = []
    for draws in _draws(results):
        ended = {p.key: results.finished[p.key] for p in draws if p.key in results.finished}
        best = min(ended, key=lambda key: ended[key].preference, default=None)
        for plan in draws:
            values = {k: v for k, v in plan.searched.items() if k != "density"}
            shown = _reached(ended[plan.key]) if plan.key in ended else _state(results, plan)
            chosen = plan.key == best
            body.append(
                [
                    free(plan.method_name),
                    f"{plan.method.density:g}",
                    free(wording.settings(values, values)),
                    f"**{shown}** ←" if chosen else shown,
                ]
            )
    if not body:
        return []
    return [
        f"Validation {metric_name(results.metric)} of every value that was tried, seed "
        f"{results.spec.seed}; the arrow marks the best one, which is repeated over the seeds. "
        f"Where a size was missed by more than {MET:g} the nearest one is the best, and the "
        "density that was reached is given.",
        table(("method", "density", "values", "validation"), body),
    ]


def _reached(record: ModelRecord) -> str:
    density = record.densities.prunable if record.densities and record.excess else None
    return number(record.quality) + (f" at {density:.3f}" if density else "")


def _draws(results: Results) -> list[list[TrialPlan]]:
    search = results.spec.search
    tuned = results.densities if search.tune_at is None else [search.tune_at]
    groups = [
        [
            p
            for p in results.plans
            if (p.method_name, p.method.density, p.repeat) == (method, density, 0)
        ]
        for method in results.methods
        for density in tuned
    ]
    finished = results.finished.keys()
    return [g for g in groups if len(g) > 1 and any(plan.key in finished for plan in g)]


def _state(results: Results, plan: TrialPlan) -> str:
    if any(each.key == plan.key for each in results.result.stopped):
        return "stopped"
    return next((state for p, state in results.missing if p.key == plan.key), "failed")


def gates(results: Results, pictures: Pictures) -> list[str]:
    """What the projection moved, and what recovery gave back."""
    body = []
    for method, row in results.runs().items():
        for density in results.densities:
            trial = row[density].trials[0] if density in row else None
            if trial is None or not trial.projection or not is_gated(trial):
                continue
            figures = trial.projection
            body.append(
                [free(method), f"{density:g}", f"{figures.get('expected_density', math.nan):.4f}"]
                + [number(figures.get(f"validation_{x}", math.nan)) for x in ("before", "after")]
                + [number(trial.quality), _undecided(trial)]
            )
    if not body:
        return []
    head = ("method", "density", "expected", "before", "after", "final", "undecided")
    return [
        f"Of the run with the lowest seed: expected density at the end of the gated steps, "
        f"validation {metric_name(results.metric)} before the projection, after it and at the "
        f"end, and the share of gates that were neither open nor shut before the projection.",
        table(head, body),
    ]


def is_gated(trial: ModelRecord) -> bool:
    """Whether a model has steps in which its structure was chosen."""
    return any(point.expected_density is not None for point in trial.curve)


def _undecided(trial: ModelRecord) -> str:
    values = [point.undecided for point in trial.curve if point.undecided is not None]
    return percent(values[-1]) if values else NONE


def curves(results: Results, pictures: Pictures) -> list[str]:
    """Densities, multipliers and undecided gates over the gated steps."""
    words = {
        "density": "Dotted: the target of the expected density.",
        "lambda": "Dotted: the quadratic multiplier, where a method has one.",
        "undecided": "Share of the gates that are neither open nor shut.",
    }
    shown = [name for name in words if name in pictures]
    lead = ["Runs with the lowest seed, a panel per density."] if shown else []
    return lead + [part for name in shown for part in (words[name], pictures[name])]


def ranks(results: Results, pictures: Pictures) -> list[str]:
    """Where the reference method keeps its ranks."""
    kinds = share_by_kind(results)
    if not kinds:
        return []
    densities = sorted({density for row in kinds.values() for density in row}, reverse=True)
    body = [
        [f"`{kind}`", *(f"{row[d]:.3f}" if d in row else NONE for d in densities)]
        for kind, row in kinds.items()
    ]
    return [
        f"{free(results.reference)}, mean over the seeds. The uniform rank of a layer is density x "
        f"break-even rank; a layer that stayed one matrix counts as its break-even rank.",
        *picture(pictures, "ranks"),
        "Mean of rank / break-even rank by kind of matrix:",
        table(["matrix", *(f"density {density:g}" for density in densities)], body),
    ]

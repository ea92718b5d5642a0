"""One HTML file per campaign that explains itself, without network and without a server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator import wording
from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.front.across import across_tasks
from orchestrator.front.assess import front_of
from orchestrator.front.objectives import largest_batch
from orchestrator.naming import TrialNames
from orchestrator.plan.actual import Comparison
from orchestrator.records import Densities, ModelRecord, Speed
from orchestrator.report_card import card_view
from orchestrator.report_curves import (
    draw_panel,
    draw_ranks,
    panels,
    phases,
    rank_figure_size,
)
from orchestrator.report_front import across_view, front_view
from orchestrator.report_ladder import ladder_view
from orchestrator.report_methods import methods_view
from orchestrator.report_plan import plan_view
from orchestrator.report_plots import draw_density_quality, draw_front, write_front_figure
from orchestrator.report_search import search_view
from orchestrator.report_svg import MAX_CURVES, PALETTE, Draw, as_svg
from orchestrator.report_trials import (
    chosen_trial,
    names_of,
    outcome,
    stops_of,
    trial_table,
)
from orchestrator.rules import parse_rule

__all__ = ["write_front_figure", "write_report"]

_TEMPLATES = Path(__file__).with_name("templates")
_HALF = (5.6, 3.9)
_PANEL = (5.6, 2.9)


def write_report(
    result: CampaignResult,
    path: Path,
    against_plan: Comparison | None = None,
    cards: Mapping[str, str] | None = None,
) -> Path:
    """Write the report of a campaign as one self-contained HTML file.

    Args:
        result: all tasks, each with at least its dense reference; trials may be none.
        path: the file, whole or not at all; missing folders are made.
        against_plan: what the campaign came to beside its plan, if it had one.
        cards: Markdown of the registered models' cards, by task.

    Returns:
        `path`.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "percent": wording.percent,
        "ratio": wording.ratio,
        "count": wording.count,
        "ms": wording.milliseconds,
        "three": wording.three_digits,
        "spread": wording.half_spread,
        "facts": wording.facts,
        "words": wording.metric_name,
    }
    page = environment.get_template("report.html.j2").render(
        _campaign_view(result, cards or {}) | {"plan": plan_view(against_plan)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _campaign_view(result: CampaignResult, cards: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": result.name,
        "started": result.started.replace("T", " "),
        "wall_time": wording.duration(result.seconds),
        "hardware": result.hardware,
        "spec_hash": result.spec_hash,
        "num_trials": sum(len(task.trials) for task in result.tasks),
        "num_failed": sum(len(task.failed) for task in result.tasks),
        "stops": stops_of(*result.tasks) if any(t.stopped for t in result.tasks) else "",
        "across": across_view(result.across or across_tasks(result.tasks)),
        "tasks": [
            _task_view(task, f"t{index}", cards.get(task.task))
            for index, task in enumerate(result.tasks)
        ],
    }


def _task_view(task: TaskResult, salt: str, card: str | None) -> dict[str, Any]:
    shown, names = shown_trials(task), names_of(task)
    front = front_of(task)
    return {
        "id": salt,
        "task": task,
        "outcome": outcome(task),
        "summary": _summary(task, names),
        "figures": _figures(task, salt),
        "sure": front_view(task, front, salt),
        "methods": methods_view(task, f"{salt}-methods"),
        "ladder": ladder_view(task, f"{salt}-ladder"),
        "card": card_view(card),
        "curves": _curves(task, shown, salt),
        "legend": _legend(task, shown, names),
        "ranks": _ranks(task, shown, salt),
        "checks": _checks(task),
        "speed": _speed(task, shown, names),
        "projections": _projections(task, shown, names),
        "search": search_view(task, f"{salt}-search"),
        "table": trial_table(task, front),
        "failed": [(names.full(f), f) for f in task.failed],
        "stopped": [(names.full(s), s) for s in task.stopped],
    }


def shown_trials(task: TaskResult) -> list[ModelRecord]:
    """The trials with curves of their own: chosen, then front, then the best of the rest."""
    place = {key: index for index, key in enumerate(task.choice.front)}
    sign = -1 if task.dense.metric.higher_is_better else 1

    def order(trial: ModelRecord) -> tuple[bool, int, float]:
        quality = sign * trial.quality if math.isfinite(trial.quality) else math.inf
        return trial.key != task.choice.key, place.get(trial.key, len(place)), quality

    return sorted(task.trials, key=order)[:MAX_CURVES]


def _summary(task: TaskResult, names: TrialNames) -> dict[str, Any] | None:
    """The chosen model against dense, for the tiles and the table over all tasks."""
    chosen, dense = chosen_trial(task), task.dense
    if chosen is None:
        return None
    batch = largest_batch([chosen])
    return {
        "name": names.full(chosen),
        "key": chosen.key,
        "quality": chosen.quality,
        "drop": wording.against_dense(chosen.metric.drop(dense.quality, chosen.quality)),
        "test": chosen.test.get(chosen.metric.name, math.nan),
        "dense_test": dense.test.get(dense.metric.name, math.nan),
        "size": chosen.size,
        "densities": Densities.of(chosen.size, dense.size),
        "batch": batch,
        "speed": next((row for row in chosen.speed if row.batch == batch), None),
    }


# --------------------------------------------------------------------------- figures


def _figure(draw: Draw, salt: str, label: str, size: tuple[float, float] = _HALF) -> str:
    # the template inserts it as it is: Matplotlib has escaped every text in it
    return as_svg(draw, salt=salt, label=label, size=size)


def _figures(task: TaskResult, salt: str) -> dict[str, str]:
    if not task.trials:
        return {}
    figures = {
        "front": _figure(
            partial(draw_front, task=task), f"{salt}-front", f"Pareto front of {task.task}"
        )
    }
    # several methods have a plot of their own, and no common setting to colour by
    one_method = len({trial.method_name for trial in task.trials}) == 1
    if one_method and any("density" in trial.config for trial in task.trials):
        label = f"Quality of {task.task} over density"
        figures["density"] = _figure(
            partial(draw_density_quality, task=task), f"{salt}-density", label
        )
    return figures


def _curves(task: TaskResult, shown: Sequence[ModelRecord], salt: str) -> list[dict[str, Any]]:
    return [
        {
            "panel": panel,
            "svg": _figure(
                partial(draw_panel, task=task, shown=shown, panel=panel),
                f"{salt}-curve-{panel.name}",
                f"{panel.title} of {task.task}",
                _PANEL,
            ),
        }
        for panel in panels(task)
    ]


def _legend(task: TaskResult, shown: Sequence[ModelRecord], names: TrialNames) -> dict[str, Any]:
    entries = [
        (colour, names.full(trial), trial.key == task.choice.key)
        for trial, colour in zip(shown, PALETTE, strict=False)
    ]
    bands = {tuple(phases(trial.curve)) for trial in shown}
    return {"entries": entries, "same_phases": len(bands) <= 1}


def _ranks(task: TaskResult, shown: Sequence[ModelRecord], salt: str) -> str | None:
    with_ranks = [trial for trial in shown if trial.ranks]
    if not with_ranks:
        return None
    draw = partial(draw_ranks, task=task, shown=with_ranks)
    label = f"Rank per layer of {task.task}"
    return _figure(draw, f"{salt}-ranks", label, rank_figure_size(with_ranks))


# --------------------------------------------------------------------------- tables


def _checks(task: TaskResult) -> list[dict[str, Any]]:
    if task.promotion is None:
        return []
    return [
        {"rule": c["rule"], "value": _judged(c), "passed": bool(c["passed"])}
        for c in task.promotion.checks
    ]


def _judged(check: dict[str, Any]) -> str:
    """The value in the unit of its rule; a check that is no rule keeps its own words."""
    value = check.get("value")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "" if value is None else str(value)
    try:
        return parse_rule(str(check["rule"])).in_words(value)
    except ValueError:
        return wording.number(value)


def _speed(task: TaskResult, shown: Sequence[ModelRecord], names: TrialNames) -> dict[str, Any]:
    rows = [
        (names.full(trial) if first else "", trial.key == task.choice.key, row)
        for trial in shown
        for first, row in _first_marked(trial.speed)
    ]
    fingerprints = {wording.facts(row.fingerprint): row.fingerprint for _, _, row in rows}
    return {"rows": rows, "fingerprints": list(fingerprints.values())}


def _first_marked(rows: Sequence[Speed]) -> list[tuple[bool, Speed]]:
    ordered = sorted(rows, key=lambda row: (row.batch, row.length))
    return [(index == 0, row) for index, row in enumerate(ordered)]


def _projections(
    task: TaskResult, shown: Sequence[ModelRecord], names: TrialNames
) -> list[dict[str, Any]]:
    return [
        {
            "name": names.full(trial),
            "before": trial.projection.get("validation_before", math.nan),
            "after": trial.projection.get("validation_after", math.nan),
            "final": trial.quality,
            "expected": trial.projection.get("expected_density", math.nan),
            "realized": Densities.of(trial.size, task.dense.size).prunable,
        }
        for trial in shown
        if trial.projection
    ]

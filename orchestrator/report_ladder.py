"""Ladders: what their trunks promised at every density, and the models that came of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.campaign_records import TaskResult
from orchestrator.naming import TrialNames
from orchestrator.records import Densities, ModelRecord
from orchestrator.report_plots import dense_line, quality_label
from orchestrator.report_svg import MAX_CURVES, PALETTE, Tips, as_svg
from orchestrator.wording import number, percent

PREVIEW, PREVIEW_DENSITY = "projected", "projected_density"
"""Extras of the trunk's points."""
NEAR = 0.005
"""Previews whose densities differ by less are of one density: ranks are whole numbers."""
REACH = 2.0
"""Previews that are worse than the worst model by more than so many times what lies between it and
dense are drawn at the edge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """One ladder with a trunk."""

    name: str
    """Settings and seed, without a density."""
    preview: list[tuple[float, float, int]]
    """Density, quality without further training, and step, in the order of the steps."""
    models: list[ModelRecord]
    """From high to low density."""


def descents(task: TaskResult) -> list[Descent]:
    """The ladders of a task, in the order of their first models.

    Every model's curve begins with the trunk's as far as its own density, so the longest preview
    holds the others.
    """
    names, ladders = TrialNames.of(task.trials), dict[str, list[ModelRecord]]()
    for trial in task.trials:
        if trial.ladder is not None and math.isfinite(trial.quality):
            ladders.setdefault(trial.ladder.trunk, []).append(trial)
    found = []
    for models in ladders.values():
        preview = max((_preview(model) for model in models), key=len)
        if preview:
            models = sorted(models, key=lambda model: -model.target_density)
            found.append(Descent(name=_name(models[0], names), preview=preview, models=models))
    return found


def ladder_view(task: TaskResult, salt: str) -> dict[str, Any] | None:
    """The block of the report; None without a trunk that was looked at."""
    found = descents(task)
    if not found:
        return None
    draw = partial(draw_ladders, task=task, ladders=found[:MAX_CURVES])
    label = f"Previews and models of {task.task} over density"
    return {
        "figure": as_svg(draw, salt=salt, label=label, size=(8.6, 4.4)),
        "num_shown": min(len(found), MAX_CURVES),
        "num_ladders": len(found),
        "rows": _rows(found, task),
    }


def _name(model: ModelRecord, names: TrialNames) -> str:
    config = {field: value for field, value in model.config.items() if field != "density"}
    return names.full(replace(model, config=config))


def _preview(model: ModelRecord) -> list[tuple[float, float, int]]:
    return [
        (point.extras[PREVIEW_DENSITY], point.extras[PREVIEW], point.step)
        for point in model.curve
        if {PREVIEW, PREVIEW_DENSITY} <= point.extras.keys()
    ]


def _rows(ladders: Sequence[Descent], task: TaskResult) -> list[dict[str, str]]:
    """Per model what its trunk showed nearest to its density, and what recovery made of that."""
    rows = []
    for ladder in ladders:
        for model in ladder.models:
            realized = _realized(model, task)
            density, quality = _nearest(ladder, realized)
            rows.append(
                {
                    "name": ladder.name if model is ladder.models[0] else "",
                    "density": percent(realized),
                    "preview": f"{number(quality)} at {percent(density)}",
                    "model": number(model.quality),
                }
            )
    return rows


def _nearest(ladder: Descent, density: float) -> tuple[float, float]:
    """A trunk stays at a density while its gates settle: the last look at it counts."""
    nearest = min(abs(seen - density) for seen, _, _ in ladder.preview)
    near = [each for each in ladder.preview if abs(each[0] - density) <= nearest + NEAR]
    return near[-1][:2]


def _realized(model: ModelRecord, task: TaskResult) -> float:
    return Densities.of(model.size, task.dense.size).prunable


# --------------------------------------------------------------------------- figure


def draw_ladders(figure: Figure, task: TaskResult, ladders: Sequence[Descent]) -> Tips:
    """Quality against density: dotted along each trunk before recovery, solid the models."""
    axes, tips = figure.add_subplot(), dict[str, str]()
    _limit(axes, task, ladders)
    for place, (ladder, colour) in enumerate(zip(ladders, PALETTE, strict=False)):
        low, high = axes.get_ylim()
        inside = [min(high, max(low, quality)) for _, quality, _ in ladder.preview]
        axes.plot([d for d, _, _ in ladder.preview], inside, ":", color=colour, lw=1.2)
        for index, ((density, quality, step), y) in enumerate(
            zip(ladder.preview, inside, strict=True)
        ):
            marker = "." if y == quality else "^" if y == high else "v"
            mark = f"preview-{place}-{index}"
            axes.plot(density, y, marker, color=colour, ms=5, gid=mark, clip_on=False)
            tips[mark] = f"{ladder.name}, step {step}: {number(quality)} at {percent(density)}"
        xs = [_realized(model, task) for model in ladder.models]
        ys = [model.quality for model in ladder.models]
        axes.plot(xs, ys, "-", color=colour, lw=1.6, label=ladder.name)
        for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
            mark = f"model-{place}-{index}"
            axes.plot(x, y, "o", color=colour, mec="white", ms=7.5, gid=mark, zorder=4)
            tips[mark] = f"{ladder.name}, model: {number(y)} at {percent(x)}"
    dense_line(axes, task)
    axes.set_xlabel("density of the prunable matrices")
    axes.set_ylabel(quality_label(task.dense))
    axes.set_xlim(left=0)
    axes.plot([], [], ":", color="#52606d", marker=".", label="before recovery")
    axes.legend(loc="best", labelspacing=0.3)
    return tips


def _limit(axes: Axes, task: TaskResult, ladders: Sequence[Descent]) -> None:
    sign = -1 if task.dense.metric.higher_is_better else 1
    losses = [sign * model.quality for ladder in ladders for model in ladder.models]
    dense = sign * task.dense.quality
    best, worst = min(dense, *losses), max(dense, *losses)
    span = (worst - best) or 0.05 * abs(dense) or 1.0
    previews = [sign * quality for ladder in ladders for _, quality, _ in ladder.preview]
    seen = [loss for loss in previews if loss <= worst + REACH * span]
    best, worst = min([best, *seen]) - 0.1 * span, max([worst, *seen]) + 0.1 * span
    axes.set_ylim(*sorted((sign * best, sign * worst)))

"""The search as parallel coordinates: a line per trial, from its settings to what came of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from orchestrator.campaign_records import TaskResult
from orchestrator.front.objectives import largest_batch
from orchestrator.naming import TrialNames
from orchestrator.records import ModelRecord
from orchestrator.report_plots import quality_limits, tooltip
from orchestrator.report_svg import CHOSEN, DENSE, Tips, as_svg, without_yellow
from orchestrator.wording import count, metric_name, number, plural, ratio, short

NONE = -0.1
"""Place of a trial whose method has no such setting: below the axis."""
DECADES = 2
"""A positive setting whose values span as many is drawn on a logarithm, as rates always are."""
FEW = 6
"""So many different values are ticks themselves."""
APART = 0.055
"""Least distance between labels of one axis."""
LONGEST = 18
"""Characters of a label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One vertical line; places are from 0, its bottom, to 1."""

    title: str
    places: list[float]
    """Of each trial; `NONE` where it has no value."""
    ticks: list[tuple[float, str]]
    """Place and label."""
    dense: float | None = None
    """Place of the dense reference."""


def search_view(task: TaskResult, salt: str) -> dict[str, Any] | None:
    """The block of the report; None below two trials, of which there is nothing to compare."""
    trials = _finite(task)
    if len(trials) < 2:
        return None
    axes = search_axes(task, trials)
    *_, outside = quality_limits(task, trials)
    draw = partial(draw_search, task=task, trials=trials, axes=axes)
    size = (max(11.4, 1.25 * len(axes)), 4.3)
    return {
        "figure": as_svg(draw, salt=salt, label=f"Search of {task.task}", size=size),
        "some_none": any(NONE in axis.places for axis in axes),
        "lines": {
            trial.key: [round(axis.places[index], 3) for axis in axes]
            for index, trial in enumerate(trials)
        },
        "outside": plural(outside, "trial") if outside else "",
        "left_out": plural(len(task.trials) - len(trials), "trial")
        if len(trials) < len(task.trials)
        else "",
    }


def _finite(task: TaskResult) -> list[ModelRecord]:
    return [trial for trial in task.trials if math.isfinite(trial.quality)]


# --------------------------------------------------------------------------- axes


def search_axes(task: TaskResult, trials: Sequence[ModelRecord]) -> list[Axis]:
    """Method, density and every searched setting, where trials differ; then size, speed, quality.

    On the last three better is up.

    Args:
        task: Theirs.
        trials: Of finite quality, at least one.
    """
    names = TrialNames.of(task.trials)
    found = (
        [_categories("method", [t.method_name for t in trials])] if names.several_methods else []
    )
    fields = dict.fromkeys(["density", *(f for fs in names.searched.values() for f in fs)])
    for field in fields:
        values = [trial.config.get(field) for trial in trials]
        if len({repr(value) for value in values}) > 1:
            found.append(_setting(field, values))
    found.append(
        _figure(
            "parameters",
            [trial.size.num_parameters for trial in trials],
            task.dense.size.num_parameters,
            count,
            is_loss=True,
        )
    )
    batch = largest_batch(trials)
    if batch is not None:
        speeds = [trial.speedup(batch) for trial in trials]
        found.append(_figure(f"speed @ {batch}", speeds, 1.0, ratio, is_loss=False))
    return [*found, _quality(task, trials)]


def _setting(field: str, values: Sequence[Any]) -> Axis:
    """Numbers on a scale, anything else as categories."""
    known = [value for value in values if value is not None]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        return _categories(field, values)
    low, high = min(known), max(known)
    is_rate = field.endswith(("_lr", "_rate")) or high >= 10**DECADES * low
    scale: Callable[[float], float] = math.log if low > 0 and is_rate else float
    place = _between(scale(low), scale(high))
    distinct = sorted(set(known))
    ticks = distinct if len(distinct) <= FEW else _round_values(low, high, scale is math.log)
    return Axis(
        title=field,
        places=[NONE if value is None else place(scale(value)) for value in values],
        ticks=_apart([(place(scale(tick)), short(tick)) for tick in ticks]),
    )


def _categories(title: str, values: Sequence[Any]) -> Axis:
    """From the top down, in the order of their first trials."""
    labels = ["" if value is None else short(value) for value in values]
    distinct = [label for label in dict.fromkeys(labels) if label]
    place = _between(len(distinct) - 1, 0)
    places = {label: place(index) for index, label in enumerate(distinct)}
    return Axis(
        title=title,
        places=[places.get(label, NONE) for label in labels],
        ticks=_apart([(each, _cut(label)) for label, each in places.items()]),
    )


def _figure(
    title: str,
    values: Sequence[float],
    dense: float,
    write: Callable[[float], str],
    is_loss: bool,
) -> Axis:
    known = [value for value in (*values, dense) if math.isfinite(value)]
    low, high = min(known), max(known)
    place = _between(high, low) if is_loss else _between(low, high)
    return Axis(
        title=title,
        places=[place(value) if math.isfinite(value) else NONE for value in values],
        ticks=_apart([(place(tick), write(tick)) for tick in _round_values(low, high, False)]),
        dense=place(dense),
    )


def _quality(task: TaskResult, trials: Sequence[ModelRecord]) -> Axis:
    """What is worse than the other plots show lies at the bottom."""
    low, high, _ = quality_limits(task, trials)
    place = _between(low, high) if task.dense.metric.higher_is_better else _between(high, low)
    return Axis(
        title=metric_name(task.dense.metric.name),
        places=[min(1.0, max(0.0, place(trial.quality))) for trial in trials],
        ticks=_apart([(place(tick), number(tick)) for tick in _round_values(low, high, False)]),
        dense=place(task.dense.quality),
    )


def _between(bottom: float, top: float) -> Callable[[float], float]:
    """The place of a value; in the middle where there is but one."""
    return lambda value: (value - bottom) / (top - bottom) if top != bottom else 0.5


def _round_values(low: float, high: float, is_log: bool) -> list[float]:
    """Inside the range."""
    if low == high:
        return [low]
    found = LogLocator(subs=(1, 2, 5)).tick_values(low, high) if is_log else []
    inside = [float(tick) for tick in found if low <= tick <= high]
    if len(inside) < 3:
        found = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        inside = [float(tick) for tick in found if low <= tick <= high]
    return inside or [low, high]


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Without those that would lie on another or say the same; the first and the last stay."""
    if not ticks:
        return []
    (first, *between), last = ticks[:-1] or ticks, ticks[-1]
    kept = [first]
    for tick in between:
        if min(abs(tick[0] - kept[-1][0]), abs(tick[0] - last[0])) >= APART and (
            tick[1] not in (kept[-1][1], last[1])
        ):
            kept.append(tick)
    is_new = abs(last[0] - kept[-1][0]) >= APART and last[1] != kept[-1][1]
    return [*kept, last] if is_new else kept


def _cut(label: str) -> str:
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


# --------------------------------------------------------------------------- figure


def draw_search(
    figure: Figure, task: TaskResult, trials: Sequence[ModelRecord], axes: Sequence[Axis]
) -> Tips:
    """Lines coloured by quality, the best and the chosen one on top."""
    plot, names, batch = figure.add_subplot(), TrialNames.of(task.trials), largest_batch(trials)
    plot.axis("off")
    plot.set_xlim(-0.04, len(axes) - 1 + 0.5)
    lowest = min(place for axis in axes for place in axis.places)
    plot.set_ylim(min(lowest, 0.0) - 0.06, 1.15)
    tips = {f"axis-{index}": axis.title for index, axis in enumerate(axes)}
    for index, axis in enumerate(axes):
        _draw_axis(plot, index, axis)
    colours, is_crowded = without_yellow().reversed(), len(trials) > 40
    quality = axes[-1].places
    low, high = min(quality), max(quality)
    norm = Normalize(low, high if high > low else low + 1)
    _draw_scale(plot, len(axes) - 1, norm)
    order = sorted(range(len(trials)), key=lambda i: (trials[i].key == task.choice.key, quality[i]))
    for index in order:
        trial = trials[index]
        is_chosen = trial.key == task.choice.key
        plot.plot(
            range(len(axes)), [axis.places[index] for axis in axes], "-o",
            color=CHOSEN if is_chosen else colours(norm(quality[index])),
            lw=2.6 if is_chosen else 0.9 if is_crowded else 1.4,
            ms=4.5 if is_chosen else 2.5 if is_crowded else 3.5,
            alpha=0.7 if is_crowded and not is_chosen else 1.0,
            gid=trial.key, zorder=4 if is_chosen else 3,
        )  # fmt: skip
        tips[trial.key] = tooltip(trial, task, batch, names)
    return tips


def _draw_axis(plot: Axes, at: int, axis: Axis) -> None:
    plot.plot([at, at], [0, 1], color="#9aa5b1", lw=1, gid=f"axis-{at}", zorder=2)
    title = axis.title if len(axis.title) <= LONGEST else axis.title.replace("_", "_\n", 1)
    plot.text(at, 1.05, title, ha="center", va="bottom", size=8.5, weight="bold")
    ticks = [*axis.ticks, *([(NONE, "none")] if NONE in axis.places else [])]
    for place, label in ticks:
        plot.plot([at - 0.015, at + 0.015], [place, place], color="#9aa5b1", lw=1, zorder=2)
        # no line comes from the left of the first axis
        side, align = (0.04, "left") if at else (-0.06, "right")
        plot.text(
            at + side, place, label, size=7.5, ha=align, va="center", color="#52606d", zorder=5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    if axis.dense is not None:
        plot.plot(at, axis.dense, "*", ms=11, color=DENSE, mec="white", zorder=6)


def _draw_scale(plot: Axes, at: int, norm: Normalize) -> None:
    """The axis of quality is its own key to the colours."""
    edges = np.linspace(norm.vmin or 0.0, norm.vmax or 1.0, 41)
    parts = [[(at, a), (at, b)] for a, b in pairwise(edges)]
    colours = without_yellow().reversed()(norm((edges[:-1] + edges[1:]) / 2))
    plot.add_collection(
        # projecting, for parts that only touch show seams
        LineCollection(parts, colors=colours, linewidths=5, capstyle="projecting", zorder=1)
    )

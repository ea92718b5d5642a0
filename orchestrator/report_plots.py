"""The two plots that a choice is made from: the Pareto front, and quality over density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from orchestrator.campaign_records import TaskResult
from orchestrator.front.dominance import pareto_front
from orchestrator.front.objectives import largest_batch, loss_values
from orchestrator.naming import TrialNames
from orchestrator.records import ModelRecord
from orchestrator.report_svg import (
    CHOSEN,
    DENSE,
    INK,
    MUTED,
    PALETTE,
    Tips,
    as_png,
    without_yellow,
)
from orchestrator.wording import (
    against_dense,
    count,
    metric_name,
    number,
    percent,
    plural,
    ratio,
    short,
)

MAX_LABELS = 12
"""On the front plot; beyond, only the best at each size are labelled."""


def write_front_figure(task_result: TaskResult, path_png: Path) -> Path:
    """Save the Pareto front of a task as a PNG, for documents and MLflow."""
    return as_png(lambda figure: draw_front(figure, task_result), path_png)


def draw_front(figure: Figure, task: TaskResult) -> Tips:
    """Quality against whole-model size; colour is the speed-up at the largest measured batch."""
    axes, dense, batch = figure.add_subplot(), task.dense, largest_batch(task.trials)
    shown = [trial for trial in task.trials if math.isfinite(trial.quality)]
    _limit_quality(axes, task, shown)
    dense_line(axes, task)
    _dense_star(axes, dense.size.num_parameters, dense)
    _limit_size(axes, task)
    tips = _front_marks(axes, task, shown, _speed_colours(figure, axes, shown, batch))
    best = _best_at_size(shown, dense)
    xs, ys = [t.size.num_parameters for t in best], [t.quality for t in best]
    axes.step(xs, ys, where="post", color="#9aa5b1", lw=1, zorder=2)
    _ring(axes, task, lambda trial: trial.size.num_parameters)
    front = [trial for trial in shown if trial.key in task.choice.front]
    _label_density(axes, task, front if len(front) <= MAX_LABELS else best)
    axes.set_xlabel("parameters of the whole model")
    axes.set_ylabel(quality_label(dense))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    return tips


def _front_marks(
    axes: Axes,
    task: TaskResult,
    shown: Sequence[ModelRecord],
    colour: Callable[[ModelRecord], Any],
) -> Tips:
    """Grey marks first, so that the front lies on top of them."""
    tips, batch, names = {}, largest_batch(task.trials), TrialNames.of(task.trials)
    for index, trial in enumerate(sorted(shown, key=lambda t: t.key in task.choice.front)):
        on_front = trial.key in task.choice.front
        y, marker = _inside(axes, trial.quality)
        mark = f"front-{index}"
        axes.plot(
            trial.size.num_parameters,
            y,
            marker,
            ms=8 if on_front else 5.5,
            color=colour(trial) if on_front else MUTED,
            mec=INK if on_front else "white",
            mew=0.6,
            gid=mark,
            zorder=4 if on_front else 3,
        )
        tips[mark] = tooltip(trial, task, batch, names)
    return tips


def _speed_colours(
    figure: Figure, axes: Axes, trials: Sequence[ModelRecord], batch: int | None
) -> Callable[[ModelRecord], Any]:
    speeds = [s for s in (trial.speedup(batch) for trial in trials) if math.isfinite(s)]
    if not speeds:
        return lambda trial: PALETTE[0]
    colours = without_yellow()
    norm = Normalize(min(*speeds, 1.0), max(speeds))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=28)
    bar.set_label(f"speed-up over dense, batch {batch}")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}x"))

    def colour(trial: ModelRecord) -> Any:
        speed = trial.speedup(batch)
        return colours(norm(speed)) if math.isfinite(speed) else "white"

    return colour


def _best_at_size(trials: Sequence[ModelRecord], dense: ModelRecord) -> list[ModelRecord]:
    """The front of quality and size alone, smallest first: the next model has to beat these."""
    losses = loss_values(trials, dense)[:, :2]
    best = [t for t, on in zip(trials, pareto_front(losses), strict=True) if on]
    return sorted(best, key=lambda trial: trial.size.num_parameters)


def _label_density(axes: Axes, task: TaskResult, trials: Iterable[ModelRecord]) -> None:
    """Densities beside the marks, chosen first, leaving out those that would overlap."""
    left, right = axes.get_xlim()
    low, top = axes.get_ylim()
    wide, high = 0.07 * (right - left), 0.05 * (top - low)
    placed: list[tuple[float, float]] = []
    for trial in sorted(trials, key=lambda trial: trial.key != task.choice.key):
        x, y = trial.size.num_parameters, _inside(axes, trial.quality)[0]
        if any(abs(x - px) < wide and abs(y - py) < high for px, py in placed):
            continue
        placed.append((x, y))
        axes.annotate(
            f"{trial.target_density:g}" if "density" in trial.config else trial.key[:4],
            (x, y),
            xytext=(8, 5),
            textcoords="offset points",
            weight="bold" if trial.key == task.choice.key else "normal",
            size=8.5,
        )


# --------------------------------------------------------------------------- density and quality


def draw_density_quality(figure: Figure, task: TaskResult) -> Tips:
    """Validation quality against the target density, one mark per trial, coloured by penalty_lr."""
    axes = figure.add_subplot()
    shown = [t for t in task.trials if "density" in t.config and math.isfinite(t.quality)]
    _limit_quality(axes, task, shown)
    dense_line(axes, task)
    _dense_star(axes, 1.0, task.dense)
    colour = _rate_colours(figure, axes, shown)
    tips, names = {}, TrialNames.of(task.trials)
    for index, trial in enumerate(shown):
        y, marker = _inside(axes, trial.quality)
        mark = f"density-{index}"
        axes.plot(trial.target_density, y, marker, ms=7, color=colour(trial), mec="white", gid=mark)
        tips[mark] = tooltip(trial, task, largest_batch(task.trials), names)
    _ring(axes, task, lambda trial: trial.target_density)
    axes.set_xlabel("target density of the prunable matrices")
    axes.set_ylabel(quality_label(task.dense))
    axes.set_xlim(0, 1.04)
    return tips


def _rate_colours(
    figure: Figure, axes: Axes, trials: Sequence[ModelRecord]
) -> Callable[[ModelRecord], Any]:
    """Few rates get a colour and a line each, many share a scale."""
    rates = sorted({_rate(trial) for trial in trials} - {math.nan})
    rates = [rate for rate in rates if math.isfinite(rate) and rate > 0]
    if len(rates) > 6:
        norm, colours = LogNorm(rates[0], rates[-1]), without_yellow()
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=28)
        bar.set_label("penalty_lr")
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        return lambda trial: colours(norm(_rate(trial))) if _rate(trial) > 0 else MUTED
    of_rate = dict(zip(rates, PALETTE, strict=False))
    for rate, colour in of_rate.items():
        same = sorted((t for t in trials if _rate(t) == rate), key=lambda t: t.target_density)
        xs, ys = [t.target_density for t in same], [_inside(axes, t.quality)[0] for t in same]
        axes.plot(xs, ys, "-", color=colour, lw=1.1, alpha=0.45)
        axes.plot([], [], "o", color=colour, mec="white", ms=7, label=short(rate))
    if len(of_rate) > 1:
        axes.legend(title="penalty_lr", loc="best", labelspacing=0.3)
    return lambda trial: of_rate.get(_rate(trial), MUTED)


def _rate(trial: ModelRecord) -> float:
    rate = trial.config.get("penalty_lr")
    return math.nan if rate is None else float(rate)


# --------------------------------------------------------------------------- shared


def quality_label(dense: ModelRecord) -> str:
    """`validation accuracy (higher is better)`."""
    return f"validation {metric_name(dense.metric.name)} ({better(dense)} is better)"


def better(dense: ModelRecord) -> str:
    """Which way the metric improves: `higher` or `lower`."""
    return "higher" if dense.metric.higher_is_better else "lower"


def tooltip(trial: ModelRecord, task: TaskResult, batch: int | None, names: TrialNames) -> str:
    """One trial in one line."""
    drop = against_dense(trial.metric.drop(task.dense.quality, trial.quality))
    share = percent(trial.size.num_parameters / task.dense.size.num_parameters)
    parts = [
        f"{names.full(trial)} ({trial.key[:8]})",
        f"{number(trial.quality)} ({drop})",
        f"{count(trial.size.num_parameters)} parameters ({share})",
    ]
    if math.isfinite(trial.speedup(batch)):
        parts.append(f"{ratio(trial.speedup(batch))} at batch {batch}")
    return "; ".join(parts)


def dense_line(axes: Axes, task: TaskResult) -> None:
    axes.axhline(task.dense.quality, color=DENSE, lw=1, ls=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"dense {number(task.dense.quality)}",
        (0.012, task.dense.quality),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        size=8.5,
        color=DENSE,
    )


def _dense_star(axes: Axes, x: float, dense: ModelRecord) -> None:
    axes.plot(x, dense.quality, "*", ms=13, color=DENSE, mec="white", zorder=4)


def _limit_size(axes: Axes, task: TaskResult) -> None:
    """From a little below the smallest model to a little above the largest, never below zero."""
    sizes = [model.size.num_parameters for model in (task.dense, *task.trials)]
    margin = 0.25 * (max(sizes) - min(sizes)) or 0.1 * max(sizes)
    axes.set_xlim(max(0, min(sizes) - margin), max(sizes) + 0.3 * margin)


def _ring(axes: Axes, task: TaskResult, place: Callable[[ModelRecord], float]) -> None:
    for trial in task.trials:
        if trial.key == task.choice.key:
            y, _ = _inside(axes, trial.quality)
            axes.plot(place(trial), y, "o", ms=15, mfc="none", mec=CHOSEN, mew=2.2, zorder=6)


def _limit_quality(axes: Axes, task: TaskResult, shown: Iterable[ModelRecord]) -> None:
    """Scale to dense and front; far worse trials become triangles on the edge, and are counted."""
    low, high, outside = quality_limits(task, shown)
    axes.set_ylim(low, high)
    if outside:
        text = f"{plural(outside, 'trial')} off the scale, at the edge"
        axes.set_title(text, size=8.5, color="#52606d", loc="right")


def quality_limits(task: TaskResult, shown: Iterable[ModelRecord]) -> tuple[float, float, int]:
    """From where to where to draw quality, and how many of the trials are worse than that.

    One diverged trial would otherwise flatten the differences that a plot is for.
    """
    sign = -1 if task.dense.metric.higher_is_better else 1
    losses = {trial.key: sign * trial.quality for trial in shown}
    near = [sign * task.dense.quality, *(losses[k] for k in task.choice.front if k in losses)]
    span = (max(near) - min(near)) or abs(near[0]) * 0.05 or 1.0
    inside = [loss for loss in losses.values() if loss <= max(near) + 0.6 * span]
    best, worst = min([*near, *inside]) - 0.1 * span, max([*near, *inside]) + 0.1 * span
    edges = sorted((sign * best, sign * worst))
    return edges[0], edges[1], len(losses) - len(inside)


def _inside(axes: Axes, quality: float) -> tuple[float, str]:
    """Where to draw a quality, and with which mark: a triangle at the edge if it is outside."""
    low, high = axes.get_ylim()
    edge = 0.02 * (high - low)
    if quality > high:
        return high - edge, "^"
    return (low + edge, "v") if quality < low else (quality, "o")

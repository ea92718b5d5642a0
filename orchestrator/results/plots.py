"""The plots of a results page, as PNG files that are read at 800 pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from orchestrator.records import CurvePoint, ModelRecord
from orchestrator.report_methods import Runs
from orchestrator.report_plots import better
from orchestrator.report_svg import PALETTE, Tips, as_png
from orchestrator.results.axes import (
    by_density,
    dense_line,
    legend,
    num_columns,
    panels,
    quality_label,
    style_of,
)
from orchestrator.results.heat import draw_ranks
from orchestrator.results.ranks import share_by_kind
from orchestrator.results.read import Results, is_structured
from orchestrator.results.tables import median_seconds, realized_density
from orchestrator.results.training import is_gated
from orchestrator.wording import metric_name

WIDTH = 7.5
"""Inches: 1,200 pixels, which a page shows as 800."""
_ROOM = 3.0
"""How far beyond the best a quality is still drawn, in units of what the best lose."""


def write_plots(results: Results, folder: Path) -> dict[str, str]:
    """Draw what there is to draw; a plot of an earlier page that it has no more is removed.

    Returns:
        From the name of a plot, which is its file's without `.png`, to what it shows in words.
    """
    shown = _plots(results)
    folder.mkdir(parents=True, exist_ok=True)
    for name in {"parent", "quality", "cost", "ranks", *_CURVES} - shown.keys():
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name, (_, draw, height) in shown.items():
        as_png(partial(_drawn, draw, results), folder / f"{name}.png", (WIDTH, height))
    return {name: words for name, (words, _, _) in shown.items()}


_Draw = Callable[[Figure, Results], None]


def _plots(results: Results) -> dict[str, tuple[str, _Draw, float]]:
    """Per plot: what it shows, how it is drawn, its height in inches."""
    name, runs = metric_name(results.metric), results.runs()
    plots: dict[str, tuple[str, _Draw, float]] = {}
    if any(point.validation is not None for point in results.dense.curve):
        plots["parent"] = (f"Validation {name} of the parent over its steps", draw_parent, 2.9)
    if not runs:
        return plots
    plots["quality"] = (f"Test {name} against density", draw_quality, 4.8)
    num = len({density for row in runs.values() for density in row})
    tall = 0.7 + 2.5 * math.ceil(num / num_columns(num))
    plots["cost"] = (f"Test {name} against seconds of training", draw_cost, tall)
    points = [point for trial in _gated(results).values() for point in trial.curve]
    for curve, (fields, label) in _CURVES.items():
        if any(getattr(point, field) is not None for point in points for field in fields):
            plots[curve] = (f"{label} over steps", partial(draw_curves, name=curve), tall)
    if kinds := share_by_kind(results):
        heat, height = draw_ranks(results, len(kinds))
        words = "Rank of each layer over its uniform rank, by block and kind of matrix"
        plots["ranks"] = (words, heat, height)
    return plots


def _drawn(draw: _Draw, results: Results, figure: Figure) -> Tips:
    draw(figure, results)
    return {}


# --------------------------------------------------------------------------- parent


def draw_parent(figure: Figure, results: Results) -> None:
    """The parent's validation curve, and what its exported model has."""
    axes, dense = figure.add_subplot(), results.dense
    points = [(p.step, p.validation) for p in dense.curve if p.validation is not None]
    axes.plot(*zip(*points, strict=True), ".-", color=PALETTE[0], lw=1.4, ms=6)
    dense_line(axes, dense.quality, "exported model")
    axes.set_xlim(left=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"validation {metric_name(results.metric)}\n({better(dense)} is better)")


# --------------------------------------------------------------------------- quality


def draw_quality(figure: Figure, results: Results) -> None:
    """Test quality against the realized density: a line per method, bars of one deviation."""
    axes, dense = figure.add_subplot(), results.dense
    lines = {
        method: [(realized_density(results, runs), runs) for runs in by_density(row)]
        for method, row in results.runs().items()
    }
    axes.set_xscale("log")
    limit_quality(axes, results, [runs for line in lines.values() for _, runs in line])
    for method, line in lines.items():
        _errorbar(axes, results, method, line)
    dense_line(axes, dense.test[results.metric], "dense")
    axes.xaxis.set_major_locator(FixedLocator(results.densities))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("realized density of the prunable matrices (logarithmic)")
    axes.set_ylabel(quality_label(results))
    legend(figure, results, lines)


def draw_cost(figure: Figure, results: Results) -> None:
    """Test quality against training time, a panel per density: methods at equal compute."""
    shown = results.runs()
    for axes, density in panels(figure, results):
        at = {method: row[density] for method, row in shown.items() if density in row}
        limit_quality(axes, results, list(at.values()))
        for method, runs in at.items():
            _errorbar(axes, results, method, [(median_seconds(runs), runs)])
        dense_line(axes, results.dense.test[results.metric], "dense")
        _limit_seconds(axes, [median_seconds(runs) for runs in at.values()])
    figure.supxlabel("seconds of training, parent not counted (median over the seeds)", size=9)
    figure.supylabel(quality_label(results), size=9)
    legend(figure, results, shown, {"linestyle": ""})


def _limit_seconds(axes: Axes, values: Sequence[float]) -> None:
    """From zero, unless all are so close to each other that they would fall together."""
    least, most = min(values), max(values)
    close = least > 0.6 * most
    axes.set_xlim(least - 0.2 * (most - least) - 0.02 * most if close else 0, 1.12 * most)


def _errorbar(
    axes: Axes, results: Results, method: str, line: Sequence[tuple[float, Runs]]
) -> None:
    """Points with one standard deviation; those off the scale as triangles at its edge."""
    style = style_of(results, method)
    xs, ys = [x for x, _ in line], [fmean(runs.test) for _, runs in line]
    bars = [stdev(runs.test) if len(runs.test) > 1 else 0.0 for _, runs in line]
    axes.errorbar(
        xs, ys, yerr=bars, fmt="none", ecolor=style["color"], elinewidth=1.4, capsize=4,
        capthick=1.4, zorder=3,
    )  # fmt: skip
    axes.plot(xs, ys, **style, lw=1.4, ms=6, mec="white", mew=0.5, zorder=4)
    low, high = axes.get_ylim()
    for x, y in zip(xs, ys, strict=True):
        if not low <= y <= high:
            edge, mark = (high, "^") if y > high else (low, "v")
            axes.plot(x, edge, mark, ms=8, color=style["color"], clip_on=False, zorder=6)


def limit_quality(axes: Axes, results: Results, shown: Sequence[Runs]) -> None:
    """Scale to dense and to the best structured method at each density, with room for others.

    One method that fails at a density would otherwise flatten the differences between the rest.
    """
    dense = results.dense
    sign = -1 if dense.metric.higher_is_better else 1
    losses = [(runs, sign * fmean(runs.test)) for runs in shown if runs.test]
    best: dict[float, float] = {}
    for runs, loss in losses:
        if is_structured(results.plan_of(runs.method_name).method):
            best[runs.density] = min(loss, best.get(runs.density, math.inf))
    near = [sign * dense.test[results.metric], *best.values()]
    span = max(near) - min(near) or 0.05 * abs(near[0]) or 1.0
    inside = [loss for _, loss in losses if loss <= max(near) + _ROOM * span]
    ends = [*near, *inside]
    margin = 0.1 * (max(ends) - min(ends) or span)
    low, high = sign * (min(ends) - margin), sign * (max(ends) + margin)
    axes.set_ylim(min(low, high), max(low, high))
    axes.set_autoscaley_on(False)


# --------------------------------------------------------------------------- curves

_CURVES = {
    "density": (("expected_density", "target_density"), "expected density"),
    "lambda": (("lambda_linear", "lambda_quadratic"), "Lagrangian multiplier"),
    "undecided": (("undecided",), "share of undecided gates"),
}
"""Per plot: fields of `CurvePoint`, the first solid and the second dotted, and the axis' label."""


def draw_curves(figure: Figure, results: Results, name: str) -> None:
    """A panel per density, a line per gated method: the run with the lowest seed."""
    fields, label = _CURVES[name]
    trials, drawn = _gated(results), set()
    for axes, density in panels(figure, results):
        every: list[float] = []
        for (method, at), trial in trials.items():
            if at != density:
                continue
            style = style_of(results, method)
            for field, dashes in zip(fields, (style["linestyle"], ":"), strict=False):
                steps, values = series(trial.curve, field)
                if values:
                    drawn.add(method)
                    every += values
                    axes.plot(steps, values, dashes, color=style["color"], lw=1.5)
        if name == "lambda":
            _scale_multipliers(axes, every)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    figure.supxlabel("optimizer step", size=9)
    figure.supylabel(label, size=9)
    legend(figure, results, [m for m in results.methods if m in drawn], {"marker": ""})


def _scale_multipliers(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic, for methods differ by orders; linear around zero if any is negative."""
    largest = max(map(abs, values), default=0.0)
    if largest == 0:
        return
    if min(values) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=10.0 ** (math.floor(math.log10(largest)) - 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def series(curve: Iterable[CurvePoint], field: str) -> tuple[list[int], list[float]]:
    """Steps and values where there are any; a multiplier that has not moved yet is left out."""
    points = [(p.step, getattr(p, field)) for p in curve if getattr(p, field) is not None]
    if field.startswith("lambda"):
        while points and points[0][1] == 0:
            points.pop(0)
    return [step for step, _ in points], [value for _, value in points]


def _gated(results: Results) -> dict[tuple[str, float], ModelRecord]:
    """Per method and density the run with the lowest seed, of methods that have gated steps."""
    return {
        (method, density): runs.trials[0]
        for method, row in results.runs().items()
        for density, runs in row.items()
        if is_gated(runs.trials[0])
    }

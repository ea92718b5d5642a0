"""What plots of a results page share: panels, styles of methods, the line of the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.report_methods import MARKERS, Runs
from orchestrator.report_plots import better
from orchestrator.report_svg import DENSE, PALETTE
from orchestrator.results.read import Results, is_structured
from orchestrator.wording import metric_name, number


def panels(figure: Figure, results: Results) -> list[tuple[Axes, float]]:
    """A panel per density that has runs, the largest first."""
    densities = sorted({d for row in results.runs().values() for d in row}, reverse=True)
    columns = num_columns(len(densities))
    grid = figure.subplots(math.ceil(len(densities) / columns), columns, squeeze=False)
    for axes in grid.flat[len(densities) :]:
        axes.set_visible(False)
    panels = list(zip(grid.flat, densities, strict=False))
    for axes, density in panels:
        axes.set_title(f"density {density:g}")
    return panels


def num_columns(num_panels: int) -> int:
    return min(num_panels, 2 if num_panels == 4 else 3)


def style_of(results: Results, method: str) -> dict[str, Any]:
    """Colour and mark of a method, the same in every plot; single weights are dashed."""
    place = results.methods.index(method)
    # a second round of colours has other marks and lines
    again = place // len(PALETTE)
    marker = MARKERS[(place + again) % len(MARKERS)]
    structured = is_structured(results.plan_of(method).method)
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": marker,
        "linestyle": ("-." if again else "-") if structured else "--",
    }


def legend(
    figure: Figure, results: Results, methods: Iterable[str], look: dict[str, str] | None = None
) -> None:
    """Above the plots, in the order of the spec; `look` replaces parts of the methods' styles."""
    handles = [
        Line2D(
            [],
            [],
            **(style_of(results, method) | (look or {})),
            lw=1.5,
            ms=6.5,
            mec="white",
            label=method,
        )
        for method in methods
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, columnspacing=1.4)


def by_density(row: Mapping[float, Runs]) -> list[Runs]:
    return [row[density] for density in sorted(row) if row[density].test]


def dense_line(axes: Axes, value: float, name: str) -> None:
    axes.axhline(value, color=DENSE, lw=1, ls=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"{name} {number(value)}", (0.015, value), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", size=8, color=DENSE,
    )  # fmt: skip


def quality_label(results: Results) -> str:
    return f"test {metric_name(results.metric)} ({better(results.dense)} is better)"

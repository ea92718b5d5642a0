"""The heat map of a results page: ranks of the reference method, block by kind of matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from orchestrator.results.ranks import Place, mean_shares
from orchestrator.results.read import Results

_COLOURS = LinearSegmentedColormap.from_list(
    "uniform", ["#8a4b08", "#E69F00", "#fbfbf8", "#56B4E9", "#004a7c"]
)
"""Less than uniform is orange, more is blue: told apart with any colour vision."""
_FACTOR = 4.0
"""Ends of the colour scale: a quarter of the uniform rank, and four times it."""


def draw_ranks(results: Results, num_kinds: int) -> tuple[Callable[[Figure, Results], None], float]:
    """How the map is drawn, and its height in inches."""
    runs = results.runs()[results.reference]
    maps = {
        density: {place: share / density for place, share in mean_shares(each.trials).items()}
        for density, each in sorted(runs.items(), reverse=True)
    }
    maps = {density: ratios for density, ratios in maps.items() if ratios}
    columns = min(len(maps), max(1, 18 // num_kinds))
    columns = 2 if (columns, len(maps)) == (3, 4) else columns
    rows = math.ceil(len(maps) / columns)
    blocks = list(dict.fromkeys(place.block for ratios in maps.values() for place in ratios))
    kinds = list(dict.fromkeys(place.kind for ratios in maps.values() for place in ratios))
    longest = max(len(kind) for kind in kinds)

    def draw(figure: Figure, _: Results) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(maps) :]:
            axes.set_visible(False)
        for axes, (density, ratios) in zip(grid.flat, maps.items(), strict=False):
            image = _draw_map(axes, ratios, blocks, kinds)
            axes.set_title(f"density {density:g}")
        for axes in grid[:, 0]:
            axes.set_ylabel("block" if any(blocks) else "")
        bar = figure.colorbar(image, ax=grid, pad=0.01, aspect=30, extend="both", extendfrac=0.03)
        bar.ax.yaxis.set_major_locator(FixedLocator([1 / _FACTOR, 0.5, 1, 2, _FACTOR]))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.set_label("rank / uniform rank")
        bar.outline.set_visible(False)

    return draw, rows * (0.55 + 0.075 * longest + 0.24 * len(blocks)) + 0.2


def _draw_map(
    axes: Axes, ratios: dict[Place, float], blocks: Sequence[str], kinds: Sequence[str]
) -> QuadMesh:
    values = np.full((len(blocks), len(kinds)), np.nan)
    for place, ratio in ratios.items():
        values[blocks.index(place.block), kinds.index(place.kind)] = ratio
    image = axes.pcolormesh(
        np.arange(len(kinds) + 1), np.arange(len(blocks) + 1), values, cmap=_COLOURS,
        norm=LogNorm(1 / _FACTOR, _FACTOR), edgecolor="white", lw=1,
    )  # fmt: skip
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        value = values[row, column]
        ink = "white" if not 1 / 2.6 < value < 2.6 else "#1f2933"
        text = f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
        axes.text(column + 0.5, row + 0.5, text, size=7, color=ink, ha="center", va="center")
    axes.set_xticks(np.arange(len(kinds)) + 0.5, kinds, rotation=90, size=7.5)
    axes.set_yticks(np.arange(len(blocks)) + 0.5, blocks, size=7.5)
    axes.set_ylim(len(blocks), 0)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image

"""Plots of how the models came about: curves over training, and the ranks that were kept."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from orchestrator.campaign_records import TaskResult
from orchestrator.naming import TrialNames
from orchestrator.records import CurvePoint, ModelRecord
from orchestrator.report_plots import better
from orchestrator.report_svg import CHOSEN, DENSE, PALETTE, Tips
from orchestrator.wording import metric_name

MAX_POINTS = 300
"""Per line; more cannot be told apart at the width of a column."""
MAX_LAYERS = 60
"""Wider heat maps average the layers whose names differ in numbers only."""

_BANDS = {"anneal": "#eef4fa", "hold": "#f9f3e6", "finetune": "#f2f7f1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One plot over the steps of training."""

    name: str
    title: str
    lines: Mapping[str, str]
    """From a field of `CurvePoint` to its line style."""
    label: str
    how_to_read: str


def panels(task: TaskResult) -> list[Panel]:
    """The plots for which any trial has points."""
    name = metric_name(task.dense.metric.name)
    every = [
        Panel(
            name="loss",
            title="Training loss",
            lines={"train_loss": "-"},
            label="training loss (nats)",
            how_to_read="Each line is averaged to at most 300 points; a jump at the start of "
            "fine-tuning is the cost of the projection.",
        ),
        Panel(
            name="validation",
            title=f"Validation {name}",
            lines={"validation": ".-"},
            label=f"{name} ({better(task.dense)} is better)",
            how_to_read="The dashed line is dense: how close fine-tuning comes back to it is "
            "what the trial lost.",
        ),
        Panel(
            name="density",
            title="Density: expected and target",
            lines={"expected_density": "-", "target_density": ":"},
            label="density of the prunable matrices",
            how_to_read="Solid is the expected density, dotted its target; a solid line that "
            "stays above means that penalty_lr is too low.",
        ),
        Panel(
            name="multipliers",
            title="Lagrangian multipliers",
            lines={"lambda_linear": "-", "lambda_quadratic": "--"},
            label="λ",
            how_to_read="Solid is the linear λ, dashed the quadratic one, which never falls; "
            "swings of the solid line are overshoot.",
        ),
    ]
    points = [point for trial in task.trials for point in trial.curve]
    return [p for p in every if any(getattr(x, f) is not None for f in p.lines for x in points)]


def draw_panel(
    figure: Figure, task: TaskResult, shown: Sequence[ModelRecord], panel: Panel
) -> Tips:
    """One panel, a colour per trial in the order of `shown`, the chosen one thicker."""
    axes = figure.add_subplot()
    last = max((trial.curve[-1].step for trial in shown if trial.curve), default=1)
    _bands(axes, next((trial.curve for trial in shown if trial.curve), []), last)
    for trial, colour in zip(shown, PALETTE, strict=False):
        chosen = trial.key == task.choice.key
        for field, style in panel.lines.items():
            steps, values = _series(trial.curve, field)
            axes.plot(
                steps,
                values,
                style,
                color=colour,
                lw=2.2 if chosen else 1.1,
                ms=5,
                zorder=4 if chosen else 3,
            )
    if panel.name == "validation":
        axes.axhline(task.dense.quality, color=DENSE, lw=1, ls=(0, (5, 3)), zorder=2)
    axes.set_xlim(0, last)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(panel.label)
    return {}


def phases(curve: Sequence[CurvePoint]) -> list[tuple[str, int]]:
    """Each phase with its first step."""
    return [(name, next(points).step) for name, points in groupby(curve, lambda p: p.phase)]


def _bands(axes: Axes, curve: Sequence[CurvePoint], last: int) -> None:
    starts = phases(curve)
    for (name, start), end in zip(starts, [s for _, s in starts[1:]] + [last], strict=True):
        axes.axvspan(start, end, color=_BANDS.get(name, "#f4f4f4"), lw=0, zorder=0)
        axes.annotate(
            name,
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            size=8,
            color="#52606d",
        )


def _series(curve: Sequence[CurvePoint], field: str) -> tuple[list[float], list[float]]:
    """Steps and values where there are any, as means of at most `MAX_POINTS` blocks."""
    pairs = [(p.step, getattr(p, field)) for p in curve if getattr(p, field) is not None]
    blocks = np.array_split(np.array(pairs, dtype=float), MAX_POINTS) if pairs else []
    means = [block.mean(axis=0) for block in blocks if len(block)]
    return [float(m[0]) for m in means], [float(m[1]) for m in means]


# --------------------------------------------------------------------------- ranks


def draw_ranks(figure: Figure, task: TaskResult, shown: Sequence[ModelRecord]) -> Tips:
    """A heat map, models down and layers across: kept rank as a share of the break-even rank."""
    axes = figure.add_subplot()
    layers, shares, texts = _rank_table(shown)
    image = axes.pcolormesh(
        np.arange(len(layers) + 1), np.arange(len(shown) + 1), shares,
        cmap=_blues(), vmin=0, vmax=1, edgecolor="white", lw=1,
    )  # fmt: skip
    size = 8 if len(layers) <= 20 else 7 if len(layers) <= 36 else 5.5
    for row, column in np.ndindex(shares.shape) if len(layers) <= MAX_LAYERS else ():
        ink = "white" if shares[row, column] > 0.55 else "#1f2933"
        axes.text(
            column + 0.5, row + 0.5, texts[row][column],
            size=size, color=ink, ha="center", va="center",
        )  # fmt: skip
    axes.set_xticks(np.arange(len(layers)) + 0.5, layers, rotation=90, size=7.5)
    names = TrialNames.of(task.trials)
    axes.set_yticks(np.arange(len(shown)) + 0.5, [names.brief(trial) for trial in shown])
    for label, trial in zip(axes.get_yticklabels(), shown, strict=True):
        if trial.key == task.choice.key:
            label.set(color=CHOSEN, weight="bold")
    if any("*" in layer for layer in layers):
        axes.set_title("means over layers whose names differ in numbers only", size=8.5)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=14)
    bar.ax.set_title("rank /\nbreak-even", size=7.5, loc="right")
    bar.outline.set_visible(False)
    return {}


def rank_figure_size(shown: Sequence[ModelRecord]) -> tuple[float, float]:
    """Inches: as wide as the page, a row per model."""
    return 11.4, 1.9 + 0.27 * len(shown)


def rank_share(layer: Mapping[str, int]) -> float:
    """Kept rank over break-even rank, 1 where the layer stayed one dense matrix; over the full rank
    for a layer that has factors from the start."""
    if layer.get("factored"):
        return layer["rank"] / layer["full_rank"]
    inputs, outputs = layer["in_features"], layer["out_features"]
    return 1.0 if layer["dense"] else layer["rank"] * (inputs + outputs) / (inputs * outputs)


def _rank_table(
    shown: Sequence[ModelRecord],
) -> tuple[list[str], np.ndarray, list[list[str]]]:
    """Column names, shares [models, columns], and what to write into each cell."""
    names = list(dict.fromkeys(name for trial in shown for name in trial.ranks))
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[re.sub(r"\d+", "*", name) if len(names) > MAX_LAYERS else name].append(name)
    shares = np.full((len(shown), len(groups)), np.nan)
    texts = [["" for _ in groups] for _ in shown]
    for row, trial in enumerate(shown):
        for column, members in enumerate(groups.values()):
            kept = [trial.ranks[name] for name in members if name in trial.ranks]
            if kept:
                shares[row, column] = np.mean([rank_share(layer) for layer in kept])
                texts[row][column] = _cell(kept)
    # grouped names stay whole: the stars say what was averaged
    columns = list(groups) if len(names) > MAX_LAYERS else _without_common_prefix(list(groups))
    return columns, shares, texts


def _cell(kept: Sequence[Mapping[str, int]]) -> str:
    if all(layer["dense"] for layer in kept):
        return "full"
    return f"{np.mean([layer['rank'] for layer in kept]):.0f}"


def _without_common_prefix(names: list[str]) -> list[str]:
    """`transformer.h.0.mlp` and `transformer.h.1.mlp` become `0.mlp` and `1.mlp`."""
    parts = [name.split(".") for name in names]
    common = 0
    while len({tuple(p[: common + 1]) for p in parts}) == 1 and all(
        len(p) > common + 1 for p in parts
    ):
        common += 1
    return [".".join(p[common:]) for p in parts]


def _blues() -> Colormap:
    return LinearSegmentedColormap.from_list("share", ["#f3f7fb", "#7fb2d9", "#0b4f8a"])

"""The page and its plot, from the figures of all sizes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.scale.measure import Figures
from lowrank.timing import fingerprint
from orchestrator.report_svg import MUTED, PALETTE, Tips, as_png

PLOT = "growth.png"
ALL = "#000000"
LINEAR = 1.25
"""Up to this growth a figure counts as linear: two runs of one size differ by as much."""
NOISE_S = 5.0
"""By which two runs of one size differ in a stage that takes a quarter of a minute, such as Ray's
start. What a trial costs is not known better from two small sizes."""

TEXT = """\
# A campaign of {most:,} trials without its trainings

{date}, {hardware}, load {load:.1f} before the first:

    python -m benchmarks.scale --sizes {sizes} --page {page}

The campaign is real: `lowrank run` with Ray Tune, on an MLflow server ({server_workers} process)
with PostgreSQL, everything on one machine. Only the trainings are not: each trial tells a recorded
one again, its points, its exported model and its record, at once. So what is left is what the
campaign itself costs. The model is small (2 layers, 64 wide), {side_by_side} trials run side by
side, and speed is measured with one batch and 7 repeats, as always alone on the machine.

## Seconds

{seconds}

{reading}

![Seconds and sizes over the number of trials]({plot})

## Memory and storage

{sizes_table}

## Commands on the finished campaign

{commands}

`lowrank run` again knows that nothing is missing after the time of its first row; the rest is Ray's
start and end, choice, registry and report. The report is opened by a headless browser, which draws
it into a picture.
"""


def write_page(
    found: Sequence[Figures], page: Path, server_workers: int, side_by_side: int
) -> None:
    """Markdown at `page`, the plot in the folder of its name."""
    found = sorted(found, key=lambda each: each.trials)
    folder = page.with_suffix("")
    as_png(lambda figure: _draw(figure, found), folder / PLOT, (11.0, 4.2))
    rows = {name: [each.stages[name] for each in found] for name in found[-1].stages}
    rows["all"] = [each.wall_s for each in found]
    sizes = {
        "driver's memory, at its start": [each.start_mib for each in found],
        "driver's memory, peak": [each.peak_mib for each in found],
        "database": [each.database_mib for each in found],
        "MLflow's artifacts": [each.artifacts_mib for each in found],
        "the campaign's folder": [each.storage_mib for each in found],
        "report.html": [each.report_mib for each in found],
    }
    commands = {name: [each.commands.get(name) for each in found] for name in found[-1].commands}
    memory = {
        f"{name}, MiB": [each.command_mib.get(name) for each in found]
        for name in found[-1].command_mib
    }
    lines = {"lines in the terminal": [float(each.lines) for each in found]}
    page.write_text(
        TEXT.format(
            most=found[-1].trials,
            date=datetime.now(UTC).date(),
            hardware=_hardware(),
            load=found[0].load,
            sizes=" ".join(str(each.trials) for each in found),
            page=page.as_posix() if not page.is_absolute() else page.name,
            server_workers=server_workers,
            side_by_side=side_by_side,
            seconds=_table("stage", found, rows),
            reading=_reading(found, rows),
            plot=f"{folder.name}/{PLOT}",
            sizes_table=_table("MiB", found, sizes | lines),
            commands=_table("seconds", found, commands | memory),
        ),
        encoding="utf-8",
    )


def growth(found: Sequence[Figures], values: Sequence[float | None]) -> list[float]:
    """What one more trial costs, between neighbouring sizes."""
    slopes = []
    for index in range(1, len(found)):
        before, after = values[index - 1], values[index]
        if before is None or after is None:
            return []
        slopes.append((after - before) / (found[index].trials - found[index - 1].trials))
    return slopes


def _table(head: str, found: Sequence[Figures], rows: dict[str, list[Any]]) -> str:
    steps = [f"{a.trials}-{b.trials}" for a, b in pairwise(found)]
    cells = [[head, *(f"{each.trials:,}" for each in found)]]
    cells[0] += [f"per trial, {step}" for step in steps]
    cells[0] += ["growth"] if len(steps) > 1 else []
    cells.append(["---"] * len(cells[0]))
    for name, values in rows.items():
        slopes = growth(found, values)
        row = [name, *("" if value is None else f"{value:,.1f}" for value in values)]
        row += [f"{slope:.3f}" for slope in slopes] or [""] * len(steps)
        if len(steps) > 1:
            row.append(_ratio(slopes))
        cells.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _ratio(slopes: Sequence[float]) -> str:
    return f"{slopes[-1] / slopes[0]:.2f}" if slopes and slopes[0] > 0 else ""


def _reading(found: Sequence[Figures], rows: dict[str, list[Any]]) -> str:
    last = found[-1]
    gaps = (
        f"A trial ended every {last.early_s:.2f} s in the first quarter of the {last.trials:,}, "
        f"and every {last.late_s:.2f} s in the last."
    )
    if len(found) < 3:
        return gaps
    above = {name: above_linear(found, values) for name, values in rows.items()}
    steep = [f"{name} ({seconds:,.0f} s)" for name, seconds in above.items() if seconds > 0]
    verdict = (
        f"No stage grows faster than linearly: up to {LINEAR:g} times what the smaller sizes let "
        f"expect counts as linear, and {NOISE_S:g} s between two of them as noise."
    )
    if steep:
        verdict = f"Above a line through the smaller sizes lie {', '.join(steep)}."
    return (
        "The columns per trial are what one more trial costs between two sizes; growth is the "
        f"last of them over the first. {verdict} {gaps}"
    )


def above_linear(found: Sequence[Figures], values: Sequence[float]) -> float:
    """Seconds by which the last size lies above a line through the first and the last but one,
    beyond what `LINEAR` and `NOISE_S` allow; 0 if it does not."""
    first, before, last = (found[index].trials for index in (0, -2, -1))
    steps = (last - before) / (before - first)
    expected = values[-2] + LINEAR * steps * max(0.0, values[-2] - values[0])
    return max(0.0, values[-1] - expected - NOISE_S * steps)


def _hardware() -> str:
    facts = fingerprint(torch.device("cpu"), torch.float32)
    return f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}"


def _draw(figure: Figure, found: Sequence[Figures]) -> Tips:
    trials = [each.trials for each in found]
    seconds, sizes = figure.subplots(1, 2)
    colours = (*(colour for colour in PALETTE if colour != ALL), MUTED)
    for name, colour in zip(found[-1].stages, colours, strict=False):
        seconds.plot(trials, [f.stages[name] for f in found], ".-", color=colour, label=name)
    seconds.plot(trials, [f.wall_s for f in found], ".-", color=ALL, lw=2, label="all")
    seconds.set_ylabel("seconds")
    kinds = {
        "driver's memory, peak": [f.peak_mib for f in found],
        "database": [f.database_mib for f in found],
        "MLflow's artifacts": [f.artifacts_mib for f in found],
        "the campaign's folder": [f.storage_mib for f in found],
        "report.html": [f.report_mib for f in found],
    }
    for (name, values), colour in zip(kinds.items(), PALETTE, strict=False):
        sizes.plot(trials, values, ".-", color=colour, label=name)
    sizes.set_ylabel("MiB")
    for axes, first in ((seconds, found[0].wall_s), (sizes, found[0].database_mib)):
        axes.plot(
            trials, [first * t / trials[0] for t in trials], ":", color="#9aa5b1", label="linear"
        )
        axes.set(xscale="log", yscale="log", xlabel="trials", xticks=trials)
        for axis in (axes.xaxis, axes.yaxis):
            # a power as a formula would be shown as its source
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return {}

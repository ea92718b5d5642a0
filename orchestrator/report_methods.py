"""Methods side by side: what each reaches at each density, over the seeds of its best draw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from orchestrator.campaign_records import TaskResult
from orchestrator.front.settings import setting_of
from orchestrator.naming import TrialNames
from orchestrator.records import Densities, ModelRecord
from orchestrator.report_plots import dense_line, quality_label
from orchestrator.report_svg import PALETTE, Tips, as_svg
from orchestrator.wording import metric_name, number, percent, plural

MARKERS = "os^DvPX*"
"""Beside the colour: a method is told by either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """One method at one density: its best draw, once per seed."""

    method_name: str
    density: float
    """The target."""
    trials: list[ModelRecord]
    """Equal but for the seed."""

    def figures(self, of: Callable[[ModelRecord], float]) -> list[float]:
        return [value for value in map(of, self.trials) if math.isfinite(value)]

    @property
    def validation(self) -> list[float]:
        return self.figures(lambda trial: trial.quality)

    @property
    def test(self) -> list[float]:
        return self.figures(lambda trial: trial.test.get(trial.metric.name, math.nan))


def compared_runs(task: TaskResult) -> dict[str, dict[float, Runs]]:
    """Per method and target density the runs that stand for the method.

    Those are the trials of one setting with the most seeds: only the best draw is repeated. Among
    settings with equally many the size decides where it was missed, then the best figure on
    validation.
    """
    groups: dict[tuple[str, float], dict[str, list[ModelRecord]]] = defaultdict(dict)
    for trial in task.trials:
        if "density" in trial.config and math.isfinite(trial.quality):
            settings = groups[trial.method_name, trial.target_density]
            settings.setdefault(setting_of(trial), []).append(trial)

    def preference(trials: list[ModelRecord]) -> tuple[int, tuple[float, float]]:
        return -len(trials), min(trial.preference for trial in trials)

    table: dict[str, dict[float, Runs]] = defaultdict(dict)
    for (method, density), settings in groups.items():
        best: list[ModelRecord] = min(settings.values(), key=preference)
        best = sorted(best, key=lambda trial: trial.seed)
        table[method][density] = Runs(method_name=method, density=density, trials=best)
    return dict(table)


def methods_view(task: TaskResult, salt: str) -> dict[str, Any] | None:
    """The block of the report; None for one method without repeats, of which all is said."""
    table = compared_runs(task)
    most = max((len(runs.trials) for row in table.values() for runs in row.values()), default=0)
    if len(table) < 2 and most < 2:
        return None
    names = TrialNames.of(task.trials)
    densities = sorted({density for row in table.values() for density in row}, reverse=True)
    rows = [
        (method or "method", [_cell(row.get(density), names) for density in densities])
        for method, row in table.items()
    ]
    label = f"Quality of the methods of {task.task} over density"
    draw = partial(draw_methods, task=task)
    return {
        "densities": densities,
        "rows": rows,
        "repeated": most > 1,
        "figure": as_svg(draw, salt=salt, label=label, size=(8.6, 4.4)),
    }


def mean_and_spread(values: Sequence[float]) -> str:
    """`2.112 ± 0.013 (3)`: mean, standard deviation of the sample and number of seeds."""
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{number(fmean(values))}{spread} ({len(values)})" if values else "n/a"


def _cell(runs: Runs | None, names: TrialNames) -> dict[str, str]:
    if runs is None:
        return {"validation": "", "test": "", "settings": ""}
    return {
        "validation": mean_and_spread(runs.validation),
        "test": mean_and_spread(runs.test),
        "settings": names.searched_in_words(runs.trials[0]),
    }


def draw_methods(figure: Figure, task: TaskResult) -> Tips:
    """Validation quality against the realized density, a line per method, bars of one deviation."""
    axes, tips = figure.add_subplot(), dict[str, str]()
    for place, (method, row) in enumerate(compared_runs(task).items()):
        colour = PALETTE[place % len(PALETTE)]
        # a second round of colours has other marks
        marker = MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]
        runs = sorted(row.values(), key=lambda each: _realized(each, task))
        xs, ys = [_realized(each, task) for each in runs], [fmean(e.validation) for e in runs]
        bars = [stdev(e.validation) if len(e.validation) > 1 else 0.0 for e in runs]
        axes.errorbar(
            xs, ys, yerr=bars, fmt=f"-{marker}", color=colour, lw=1.3, ms=6.5, mec="white",
            mew=0.6, capsize=3, elinewidth=1.1, label=method,
        )  # fmt: skip
        for index, (x, y, each) in enumerate(zip(xs, ys, runs, strict=True)):
            mark = f"method-{place}-{index}"
            axes.plot(x, y, "o", ms=11, color="none", mec="none", gid=mark, zorder=5)
            tips[mark] = _tip(each, x)
    dense_line(axes, task)
    axes.set_xlabel("realized density of the prunable matrices")
    axes.set_ylabel(quality_label(task.dense))
    axes.set_xlim(left=0)
    axes.legend(loc="best", labelspacing=0.3)
    return tips


def _realized(runs: Runs, task: TaskResult) -> float:
    return fmean(Densities.of(trial.size, task.dense.size).prunable for trial in runs.trials)


def _tip(runs: Runs, realized: float) -> str:
    name = metric_name(runs.trials[0].metric.name)
    return (
        f"{runs.method_name}, density {percent(realized)}, {plural(len(runs.trials), 'seed')}: "
        f"{name} {mean_and_spread(runs.validation)}, test {mean_and_spread(runs.test)}"
    )

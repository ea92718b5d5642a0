"""All tasks of a campaign in one view: a table per density, methods down, tasks across."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from orchestrator.report_methods import Runs, mean_and_spread
from orchestrator.results.read import Results
from orchestrator.results.tables import best_methods
from orchestrator.results.text import NONE, free, signed, table
from orchestrator.wording import metric_name, number, percent


def together(tasks: Sequence[Results]) -> list[str]:
    """Test figures of every method on every task."""
    blocks = [
        "Test, mean ± standard deviation over the seeds (number of seeds), and the difference to "
        "dense in percent of dense. Bold: the best of a task, single weights apart. *Mean change* "
        "is over the tasks, better positive; it is given where a method has run on all of them."
    ]
    for density in _densities(tasks):
        head = ["method", *(f"{free(t.task.name)}, {metric_name(t.metric)}" for t in tasks)]
        dense = ["dense", *(number(t.dense.test[t.metric]) for t in tasks), ""]
        rows = [_row(method, density, tasks) for method in _methods(tasks)]
        shown = [row for row in rows if set(row[1:]) != {NONE}]
        if shown:
            blocks += [f"Density {density:g}:", table([*head, "mean change"], [dense, *shown])]
    return blocks


def _densities(tasks: Sequence[Results]) -> list[float]:
    return sorted({density for task in tasks for density in task.densities}, reverse=True)


def _methods(tasks: Sequence[Results]) -> list[str]:
    return list(dict.fromkeys(method for task in tasks for method in task.methods))


def _row(method: str, density: float, tasks: Sequence[Results]) -> list[str]:
    found = [task.runs().get(method, {}).get(density) for task in tasks]
    cells = [_cell(method, density, t, runs) for t, runs in zip(tasks, found, strict=True)]
    gains = [
        _gain(task, runs) for task, runs in zip(tasks, found, strict=True) if runs and runs.test
    ]
    mean = signed(fmean(gains), percent) if len(gains) == len(tasks) else NONE
    return [free(method), *cells, mean]


def _cell(method: str, density: float, task: Results, runs: Runs | None) -> str:
    if runs is None or not runs.test:
        return NONE
    text = mean_and_spread(runs.test)
    best = best_methods(task, lambda each: each.test).get(density, ())
    return f"{f'**{text}**' if method in best else text}<br>{signed(_change(task, runs), percent)}"


def _change(task: Results, runs: Runs) -> float:
    """Of the mean, in parts of dense."""
    dense = task.dense.test[task.metric]
    return (fmean(runs.test) - dense) / abs(dense) if dense else math.nan


def _gain(task: Results, runs: Runs) -> float:
    """The change, positive where it is for the better."""
    return _change(task, runs) * (1 if task.dense.metric.higher_is_better else -1)

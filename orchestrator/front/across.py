"""One setting, or one method, over all tasks of a campaign: how far it is from each task's best."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from orchestrator.campaign_records import TaskResult
from orchestrator.front.figures import AcrossTasks
from orchestrator.front.settings import setting_of
from orchestrator.naming import TrialNames
from orchestrator.records import ModelRecord

Runs = list[ModelRecord]


def across_tasks(tasks: Sequence[TaskResult]) -> list[AcrossTasks]:
    """Worst-task regret and average rank, at each density by itself.

    What is compared are the settings that ran on every task, where a density has at least two. Else
    it is the methods, on each task with the setting that did best there. Both by validation, as the
    mean over seeds of the relative drop from dense, so that metrics of different tasks compare.

    Args:
        tasks: Of one campaign.

    Returns:
        At each density the least worst regret first; empty for a single task, or where fewer than
        two settings or methods ran on all of them.
    """
    if len(tasks) < 2:
        return []
    names = TrialNames.of([trial for task in tasks for trial in task.trials])
    compared: list[AcrossTasks] = []
    for density in _densities(tasks):
        shared = _shared(tasks, density, names.full_setting)
        if len(shared) < 2:
            shared = _tuned(tasks, density)
        if len(shared) >= 2:
            compared += compare(shared, density)
    return compared


def compare(drops: Mapping[str, Mapping[str, float]], density: float) -> list[AcrossTasks]:
    """Regret and rank of each row.

    Args:
        drops: Per name and task a loss, finite; all names have the same tasks.
        density: For the result.
    """
    names, tasks = list(drops), list(next(iter(drops.values())))
    table = np.array([[drops[name][task] for task in tasks] for name in names])
    regrets = table - table.min(axis=0)
    ranks = stats.rankdata(table, axis=0).mean(axis=1)
    worst = regrets.argmax(axis=1)
    rows = [
        AcrossTasks(
            name=name,
            density=density,
            drops=dict(drops[name]),
            worst_regret=float(regrets[row, worst[row]]),
            worst_task=tasks[worst[row]],
            average_rank=float(ranks[row]),
        )
        for row, name in enumerate(names)
    ]
    return sorted(rows, key=lambda each: (each.worst_regret, each.average_rank, each.name))


def _densities(tasks: Sequence[TaskResult]) -> list[float]:
    found = {t.target_density for task in tasks for t in task.trials if "density" in t.config}
    return sorted(found, reverse=True)


def _at(task: TaskResult, density: float) -> dict[tuple[str, str], Runs]:
    """Per method and setting the runs at a density whose quality compares."""
    groups: dict[tuple[str, str], Runs] = defaultdict(list)
    for trial in task.trials:
        if trial.config.get("density") == density and math.isfinite(_drop([trial], task)):
            groups[trial.method_name, setting_of(trial)].append(trial)
    return groups


def _drop(runs: Runs, task: TaskResult) -> float:
    metric, dense = task.dense.metric, task.dense.quality
    return float(np.mean([metric.drop(dense, run.quality) for run in runs]))


def _shared(
    tasks: Sequence[TaskResult], density: float, name: Callable[[ModelRecord], str]
) -> dict[str, dict[str, float]]:
    groups = [_at(task, density) for task in tasks]
    everywhere = [key for key in groups[0] if all(key in group for group in groups)]
    return {
        name(groups[0][key][0]): {
            task.task: _drop(group[key], task) for task, group in zip(tasks, groups, strict=True)
        }
        for key in everywhere
    }


def _tuned(tasks: Sequence[TaskResult], density: float) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for task in tasks:
        for (method, _), runs in _at(task, density).items():
            name = f"{method or 'method'}, tuned on each task"
            drop = _drop(runs, task)
            found[name][task.task] = min(drop, found[name].get(task.task, math.inf))
    return {name: row for name, row in found.items() if len(row) == len(tasks)}

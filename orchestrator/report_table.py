"""The trials of a task for a terminal: the only module of the report that knows rich."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.records import Densities, ModelRecord, TaskResult
from orchestrator.report_trials import measured_batches, outcome, status_of
from orchestrator.wording import count, metric_name, number, percent, ratio, short

_STYLES = {"champion": "bold green", "candidate": "bold yellow", "dominated": "dim"}


def terminal_table(task_result: TaskResult) -> Table:
    """Dense and every trial, best front members first.

    A star marks the front; the chosen model is called champion if it was promoted, candidate if
    not.
    """
    task, batches = task_result, measured_batches(task_result)
    table = Table(title=escape(_title(task)), title_justify="left", caption=_caption(task))
    table.add_column("")
    for heading in ("density", "penalty_lr"):
        table.add_column(heading, justify="right")
    table.add_column(escape(metric_name(task.dense.metric.name)), justify="right")
    for heading in ("drop", "parameters", "of dense"):
        table.add_column(heading, justify="right")
    for batch in batches:
        table.add_column(f"speed @ {batch}", justify="right")
    table.add_column("")
    dense = task.dense
    table.add_row(
        "", "1", "", number(dense.quality), "", count(dense.size.num_parameters), "100.0%",
        *["1.00x"] * len(batches), "dense", end_section=True,
    )  # fmt: skip
    for trial in sorted(task.trials, key=lambda trial: _order(trial, task)):
        status = status_of(trial, task)
        table.add_row(*_cells(trial, task, batches, status), style=_STYLES.get(status, ""))
    for failed in task.failed:
        settings = [short(failed.config.get(k, "")) for k in ("density", "penalty_lr")]
        blanks = [""] * (4 + len(batches))
        # as Text, because a reason with brackets is no markup
        table.add_row("", *settings, *blanks, Text(f"failed: {failed.reason}"), style="red")
    return table


def _cells(
    trial: ModelRecord, task: TaskResult, batches: list[int], status: str
) -> list[str | Text]:
    dense = task.dense
    return [
        "★" if trial.key in task.choice.front else "",
        *(short(trial.config.get(k, "")) for k in ("density", "penalty_lr")),
        number(trial.quality),
        percent(trial.metric.drop(dense.quality, trial.quality)),
        count(trial.size.num_parameters),
        percent(Densities.of(trial.size, dense.size).parameters),
        *(ratio(trial.speedup(batch)) for batch in batches),
        status if status in ("champion", "candidate") else "",
    ]


def _order(trial: ModelRecord, task: TaskResult) -> tuple[int, float, str]:
    front = task.choice.front
    place = front.index(trial.key) if trial.key in front else len(front)
    return place, -float(trial.config.get("density", 0)), trial.key


def _title(task: TaskResult) -> str:
    return f"{task.task}: {len(task.trials)} finished, {len(task.failed)} failed"


def _caption(task: TaskResult) -> str:
    chosen = {
        "champion": "; champion = promoted",
        "candidate": "; candidate = chosen, not promoted",
    }
    return "★ on the Pareto front" + chosen.get(outcome(task), "; no model was chosen")

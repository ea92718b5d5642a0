"""The trials of a task for a terminal: the only module of the report that knows rich."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.campaign_records import TaskResult
from orchestrator.front.assess import front_of
from orchestrator.naming import USUAL, Trial, TrialNames
from orchestrator.records import Densities, ModelRecord
from orchestrator.report_trials import measured_batches, names_of, outcome, status_of, stops_of
from orchestrator.wording import (
    count,
    metric_name,
    number,
    percent,
    probability_in_words,
    ratio,
    short,
)

_STYLES = {"champion": "bold green", "candidate": "bold yellow", "dominated": "dim"}


def terminal_table(task_result: TaskResult) -> Table:
    """Dense and every trial, best front members first.

    A star marks the front, and `P(front)` says how probable it is that a setting is on it; the
    chosen model is called champion if it was promoted, candidate if not.
    """
    task, batches = task_result, measured_batches(task_result)
    front = front_of(task)
    table = Table(title=escape(_title(task)), title_justify="left", caption=_caption(task))
    table.add_column("")
    names = names_of(task)
    headings = _setting_headings(names)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    table.add_column(escape(metric_name(task.dense.metric.name)), justify="right")
    for heading in ("drop", "parameters", "of dense"):
        table.add_column(heading, justify="right")
    for batch in batches:
        table.add_column(f"speed @ {batch}", justify="right")
    table.add_column("P(front)", justify="right")
    table.add_column("")
    dense = task.dense
    table.add_row(
        "", *("1" if heading == "density" else "" for heading in headings),
        number(dense.quality), "", count(dense.size.num_parameters), "100.0%",
        *["1.00x"] * len(batches), "", "dense", end_section=True,
    )  # fmt: skip
    for trial in sorted(task.trials, key=lambda trial: _order(trial, task)):
        status = status_of(trial, task)
        cells = _cells(trial, task, batches, status, names)
        probability = front.probability_of(trial.key) if front else None
        cells.insert(-1, probability_in_words(probability))
        table.add_row(*cells, style=_STYLES.get(status, ""))
    for stopped in task.stopped:
        settings, blanks = _settings(stopped, names), [""] * (5 + len(batches))
        what = f"stopped at rung {stopped.rung:g}: {stopped.reason}"
        table.add_row("", *settings, *blanks, Text(what), style="dim")
    for failed in task.failed:
        settings = _settings(failed, names)
        blanks = [""] * (5 + len(batches))
        # as Text, because a reason with brackets is no markup
        table.add_row("", *settings, *blanks, Text(f"failed: {failed.reason}"), style="red")
    return table


def _cells(
    trial: ModelRecord, task: TaskResult, batches: list[int], status: str, names: TrialNames
) -> list[str | Text]:
    dense = task.dense
    return [
        "★" if trial.key in task.choice.front else "",
        *_settings(trial, names),
        number(trial.quality),
        percent(trial.metric.drop(dense.quality, trial.quality)),
        count(trial.size.num_parameters),
        percent(Densities.of(trial.size, dense.size).parameters),
        *(ratio(trial.speedup(batch)) for batch in batches),
        status if status in ("champion", "candidate") else "",
    ]


def _setting_headings(names: TrialNames) -> list[str]:
    """Methods search different things, so their values share a column."""
    searched = {field for fields in names.searched.values() for field in fields}
    usual = not names.several_methods and searched <= set(USUAL)
    return [
        *(["method"] if names.several_methods else []),
        *(USUAL if usual else ("density", "settings")),
        *(["seed"] if names.several_seeds else []),
    ]


def _settings(trial: Trial, names: TrialNames) -> list[str | Text]:
    # as Text, because names with brackets are no markup
    values: dict[str, str | Text] = {
        "method": Text(trial.method_name),
        "settings": Text(names.searched_in_words(trial)),
        "seed": "" if trial.seed is None else str(trial.seed),
    }
    for field in USUAL:
        value = trial.config.get(field)
        values[field] = "" if value is None else short(value)
    return [values[heading] for heading in _setting_headings(names)]


def _order(trial: ModelRecord, task: TaskResult) -> tuple[int, float, str]:
    front = task.choice.front
    place = front.index(trial.key) if trial.key in front else len(front)
    return place, -float(trial.config.get("density", 0)), trial.key


def _title(task: TaskResult) -> str:
    counts = f"{task.task}: {len(task.trials)} finished, {len(task.failed)} failed"
    return f"{counts}, {stops_of(task)}" if task.stopped else counts


def _caption(task: TaskResult) -> str:
    chosen = {
        "champion": "; champion = promoted",
        "candidate": "; candidate = chosen, not promoted",
    }
    return "★ on the Pareto front" + chosen.get(outcome(task), "; no model was chosen")

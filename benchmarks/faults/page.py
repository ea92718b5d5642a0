"""The page: faults by kind, and what they did to the campaigns."""

from __future__ import annotations

import os
import platform
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.faults.ledger import Found, Ledger
from lowrank.benchmark.tables import TextTable

INTRODUCTION = """# Faults

What happens to a campaign whose machines die, hang and fill up at random times. It trains two tasks
with every family of methods ({spec}) and writes to an MLflow
server on PostgreSQL; left alone it took {undisturbed:.0f} s.
Written by

    {command}

on {date}, {hardware}.
"""


def write_page(
    out: Path, ledger: Ledger, found: list[Found], command: str, undisturbed_s: float
) -> None:
    """Replace the page."""
    hardware = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    names = ("ray", "mlflow", "torch")
    hardware += "".join(f", {name} {version(name)}" for name in names)
    text = INTRODUCTION.format(
        spec="benchmarks/faults/campaign.yaml",
        undisturbed=undisturbed_s,
        command=command,
        date=datetime.now(UTC).date(),
        hardware=hardware,
    )
    tables = [_campaigns(found), _kinds(ledger)]
    parts = [text, _verdict(found), _cost(ledger, found, undisturbed_s)]
    out.write_text("\n".join([*parts, *(f"{table.markdown()}\n" for table in tables)]), "utf-8")


def _verdict(found: list[Found]) -> str:
    problems = [problem for each in found for problem in each.problems]
    if problems:
        return "**Not as it should be:**\n\n" + "\n".join(f"- {each}" for each in problems) + "\n"
    return (
        "Every planned model ended exactly once, with the bits of the undisturbed campaign; no\n"
        "run was left open or made twice, no step was written twice, and fronts and champions are\n"
        "the same.\n"
    )


def _cost(ledger: Ledger, found: list[Found], undisturbed_s: float) -> str:
    lost = sum(each.seconds for each in found) - len(found) * undisturbed_s
    ends = ", ".join(f"{code}: {count}" for code, count in sorted(Counter(ledger.codes).items()))
    return (
        f"{len(ledger.faults)} faults cost {lost:.0f} s in all, {lost / len(ledger.faults):.0f} s "
        f"each, the driver's starts by hand among them.\nIts exit statuses ({ends}): 0 is over, "
        "130 interrupted, -9 killed.\n"
    )


def _campaigns(found: list[Found]) -> TextTable:
    headings = ["campaign", "seconds", "planned", "finished", "same bits", "lost", "runs twice"]
    headings += ["runs open", "steps twice", "same fronts", "same champions"]
    rows = []
    for each in found:
        counts = [each.planned, each.finished, each.same_bits, each.lost, each.duplicated]
        counts += [each.open_runs, each.steps_twice]
        of_tasks = [each.same_fronts, each.same_champions]
        cells = [each.name, f"{each.seconds:.0f}", *map(str, counts)]
        rows.append([*cells, *(f"{count} of {each.tasks}" for count in of_tasks)])
    return TextTable(title="Campaigns", headings=headings, rows=rows)


def _kinds(ledger: Ledger) -> TextTable:
    rows = []
    for kind, count in sorted(Counter(fault.kind for fault in ledger.faults).items()):
        waits = ledger.waits.get(kind, [])
        shown = [f"{median(waits):.0f}", f"{max(waits):.0f}"] if waits else ["", ""]
        rows.append([kind, str(count), *shown])
    note = (
        "Until the campaign moves: from the fault to the next step, model or measurement that the "
        "driver tells of. A worker that is stopped is noticed after 30 s here (Ray's own time is "
        "ten minutes), and after two minutes if it has not begun to train."
    )
    headings = ["fault", "times", "median s until the campaign moves", "longest"]
    return TextTable(title="Faults", headings=headings, rows=rows, note=note)

"""The page: planned beside actual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowrank.benchmark.tables import TextTable
from orchestrator.plan.actual import ALL_BYTES, ALL_TRAINING, WALL, Compared
from orchestrator.plan.figures import Range
from orchestrator.report_plan import expected, off_by
from orchestrator.wording import count, duration, facts

INTRODUCTION = """# Plans against campaigns

Two campaigns (benchmarks/plan/specs.py), each planned by `lowrank plan`{overhead} and then run on
the same machine. Seconds of trainings are what their records tell, summed over models; "off by" is
planned minus actual, of actual. Written by

    {command}

on {date}; {machine}.
"""


@dataclass(frozen=True)
class Planned:
    """A campaign with its plan, as JSON."""

    name: str
    spec: str
    plan: dict[str, Any]
    comparison: dict[str, Any]

    @property
    def rows(self) -> dict[str, Compared]:
        """Of the whole campaign."""
        return {row.part: row for row in (*self.seconds, *self.bytes) if not row.task}

    @property
    def seconds(self) -> list[Compared]:
        return [_row(row) for row in self.comparison["seconds"]]

    @property
    def bytes(self) -> list[Compared]:
        return [_row(row) for row in self.comparison["bytes"]]

    def missed(self, time: float, size: float) -> Iterator[str]:
        """Figures that are off by more than is allowed."""
        for part, allowed in ((WALL, time), (ALL_TRAINING, time), (ALL_BYTES, size)):
            row = self.rows.get(part)
            if row is None:
                yield f"{self.name}: {part} was not compared"
            elif abs(row.error) > allowed:
                yield f"{self.name}: {part} is off by {off_by(row)}, {allowed:.0%} is allowed"


def write_page(page: Path, found: list[Planned], command: str, time: float, size: float) -> None:
    """Replace the page."""
    plans = [each.plan for each in found]
    text = INTRODUCTION.format(
        command=command,
        date=datetime.now(UTC).date(),
        machine=facts(plans[0]["machine"]),
        overhead=" --with-ray" if "--with-ray" in command else "",
    )
    missed = [line for each in found for line in each.missed(time, size)]
    verdict = (
        "**Not as asked for:**\n\n" + "\n".join(f"- {line}" for line in missed)
        if missed
        else f"Every campaign's time is within {time:.0%} and its bytes within {size:.0%}."
    )
    tables = [_summary(found)]
    for each in found:
        tables += [_table(each.name, each.seconds, duration), _table(each.name, each.bytes, _size)]
    parts = [text, verdict, *(table.markdown() for table in tables)]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _summary(found: list[Planned]) -> TextTable:
    headings = ["campaign", "models", "time planned", "range", "time", "off by", "bytes planned"]
    headings += ["bytes", "off by", "memory of a worker planned"]
    rows = []
    for each in found:
        wall, kept = each.rows[WALL], each.rows[ALL_BYTES]
        tasks = each.plan["tasks"]
        cells = [each.name, str(sum(1 + task["trials"] for task in tasks))]
        cells += [duration(wall.planned.value), expected(wall, duration), duration(wall.actual)]
        cells += [off_by(wall), _size(kept.planned.value), _size(kept.actual), off_by(kept)]
        rows.append([*cells, _size(max(task["memory_bytes"] for task in tasks))])
    return TextTable(title="Campaigns", headings=headings, rows=rows)


def _table(name: str, rows: list[Compared], write: Any) -> TextTable:
    cells = [
        [
            f"{row.task}: {row.part}" if row.task else row.part,
            write(row.planned.value),
            expected(row, write),
            write(row.actual),
            off_by(row),
        ]
        for row in rows
    ]
    what = "time" if write is duration else "bytes"
    headings = ["part", "planned", "range", "actual", "off by"]
    return TextTable(title=f"{name}: {what}", headings=headings, rows=cells)


def _row(values: dict[str, Any]) -> Compared:
    return Compared(**{**values, "planned": Range(**values["planned"])})


def _size(value: float) -> str:
    return count(value, "B")

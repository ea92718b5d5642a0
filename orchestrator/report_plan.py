"""The report's section on what a campaign cost, beside its plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.plan.actual import Compared, Comparison
from orchestrator.wording import count, duration, percent


def plan_view(comparison: Comparison | None) -> dict[str, Any] | None:
    """Rows of texts; None where nothing was planned that could be compared."""
    if comparison is None or not (comparison.seconds or comparison.bytes):
        return None
    tables = [_rows(comparison.seconds, duration), _rows(comparison.bytes, _size)]
    return {
        "made": comparison.made,
        "tables": [rows for rows in tables if rows],
        "notes": comparison.notes,
    }


def off_by(row: Compared) -> str:
    """`+12.0%`: more was planned than it came to."""
    return f"{'+' if row.error >= 0 else '-'}{percent(abs(row.error))}"


def expected(row: Compared, write: Callable[[float], str]) -> str:
    """From where to where; empty for a figure without a range."""
    low, high = row.planned.low, row.planned.high
    return f"{write(low)} to {write(high)}" if high > low else ""


def _rows(rows: Sequence[Compared], write: Callable[[float], str]) -> list[dict[str, str]]:
    return [
        {
            "name": f"{row.task}: {row.part}" if row.task else row.part,
            "planned": write(row.planned.value),
            "range": expected(row, write),
            "actual": write(row.actual),
            "off": off_by(row),
        }
        for row in rows
    ]


def _size(value: float) -> str:
    return count(value, "B")

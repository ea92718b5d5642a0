"""How a results page is written: Markdown tables, and texts from elsewhere made safe for them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from orchestrator.wording import without_places

Pictures = Mapping[str, str]
"""From the name of a plot that was drawn to its Markdown."""
NONE = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells).strip() + " |" for cells in lines)


def free(text: Any) -> str:
    """A text from elsewhere as a cell or a line: one line, no places, no markup."""
    line = " ".join(without_places(str(text)).split())
    # an underscore inside of a word is no markup
    return re.sub(r"[\\`*<|]|\b_|_\b", r"\\\g<0>", line)


def signed(value: float, write: Callable[[float], str]) -> str:
    return write(value) if math.isnan(value) else f"{'-' if value < 0 else '+'}{write(abs(value))}"


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 9.95 else f"{value:.1f} s"


def picture(pictures: Pictures, name: str) -> list[str]:
    return [pictures[name]] if name in pictures else []

"""What is done to one file on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
"""Of a file in a folder."""
Edit = Callable[[Any], object]
"""Of a value that JSON gave."""


def edited(name: str, edit: Edit) -> Change:
    def change(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        edit(value)
        (folder / name).write_text(json.dumps(value))

    return change


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def half_json(content: bytes) -> bytes:
    """Before a comma: what a parser misses there does not depend on the length of what it has."""
    return content[: content.rindex(b",", 0, len(content) // 2)]


def last_flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])

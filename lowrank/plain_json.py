"""JSON files: written whole or not at all, and read with limits, for somebody else may have written
them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
"""Of a manifest: a model of a million tensors needs about as much, and the values in memory take
some ten times the bytes of the text."""


def read_json(path: Path, max_bytes: int | None = MAX_BYTES, finite: bool = True) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is no file, larger than `max_bytes`, not UTF-8, or not JSON.
    """
    size = path.stat().st_size
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("it must be a file")
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"it must have at most {max_bytes:,} bytes, got {size:,}")
    return parse_json(path.read_text(encoding="utf-8"), finite)


def write_json(path: Path, value: Any) -> None:
    """Write a value; a process that dies meanwhile, or a machine, leaves the file as it was.

    Args:
        path: In a folder that is there. A `.partial` beside it is what a dead process left.
        value: JSON, with finite numbers.

    Raises:
        OSError: It cannot be written.
        ValueError: A number is not finite.
    """
    text = json.dumps(value, indent=1, allow_nan=False)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a rename must not reach the disk before what it names
    os.replace(partial, path)


def parse_json(text: str, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: Of any length.
        finite: Whether NaN and infinity are refused, which JSON does not have and Python writes.

    Raises:
        ValueError: It is not JSON, or nested too deeply to be read.
    """
    checks: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
    try:
        return json.loads(text, **checks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"numbers must be finite, got {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"numbers must be finite, got {text[:20]}")
    return value

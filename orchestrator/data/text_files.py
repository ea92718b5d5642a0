"""Text files and tab-separated tables, read strictly: what is wrong is named with its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import DataError
from orchestrator.wording import LONGEST_PATH, cut, listed

MIN_PARAGRAPHS = 10
"""From this many blank-line separated paragraphs on, a tenth of them is a paragraph; a text with
fewer is divided into lines."""


class Row(NamedTuple):
    """One labelled example of a table."""

    texts: tuple[str, ...]
    label: str
    where: str
    """Its place in the source, for error messages: `line 12`."""


def read_text(path: str) -> str:
    """Read a UTF-8 text file as it is: no newline is translated, only a leading BOM removed.

    Raises:
        DataError: When the file is missing, empty, binary or not UTF-8.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode) or stat.S_ISCHR(os.stat(path).st_mode):
            raise DataError(f"{path} must be a file, got a pipe or a device")  # read without end
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"no such file: {path}") from error
    except OSError as error:
        shown = cut(path, LONGEST_PATH)
        raise DataError(f"cannot read {shown}: {error.strerror or error}") from error
    except ValueError as error:  # of a NUL byte
        raise DataError(f"cannot read {path!r:.300}: {error}") from error
    if b"\0" in content:
        raise DataError(
            f"{path} must be text, but there is a NUL byte at offset {content.index(0)}"
        )
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be UTF-8, but the byte 0x{content[error.start]:02x} at offset "
            f"{error.start} is not: {error.reason}"
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def documents_of(text: str) -> list[str]:
    """Divide a text into paragraphs, or into lines when there are too few paragraphs.

    Every document ends with its separator, so that joining them gives readable text again.
    """
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    filled = [paragraph for paragraph in paragraphs if paragraph]
    if len(filled) >= MIN_PARAGRAPHS:
        return ["\n".join(paragraph) + "\n\n" for paragraph in filled]
    return [line + "\n" for paragraph in filled for line in paragraph]


def read_table(path: str, text: Sequence[str], label: str) -> list[Row]:
    r"""Read a tab-separated table with a header: no quoting, lines end at `\n` and nowhere else.

    A `\r` at the end of the header is taken for Windows line ends, and removed from every line.

    Raises:
        DataError: When a column is missing, a row has another number of fields than the header,
            or a label is empty; with the line.
    """
    lines = read_text(path).split("\n")
    if lines[0].endswith("\r"):
        lines = [line.removesuffix("\r") for line in lines]
    header = lines[0].split("\t")
    text_fields = [_position(header, name, path) for name in text]
    label_field = _position(header, label, path)
    if label in text:
        raise DataError(f"{path}: column {label!r} cannot be text and label at once")
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: every row must have {len(header)} tab-separated fields "
                f"like the header, got {len(fields)}"
            )
        if not fields[label_field].strip():
            raise DataError(f"{path}, line {number}: the label (column {label!r}) is empty")
        texts = tuple(fields[field] for field in text_fields)
        rows.append(Row(texts, fields[label_field].strip(), f"line {number}"))
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    return rows


def _position(header: list[str], name: str, path: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    problem = "occurs more than once" if name in header else "is missing"
    raise DataError(f"{path}: column {name!r} {problem}; columns present: {listed(header)}")

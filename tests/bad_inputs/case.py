"""One bad input: how it is made, what reads it, and what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.failure import run_command

LONGEST = 1000
"""Characters of a message, its paths left out: some lines that a person reads."""


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """An input and what is expected of who reads it."""

    group: str
    what: str
    """The input, in words."""
    made: Callable[[Path], None]
    """Writes it into an empty folder."""
    reader: str
    """What reads it, as the page shows it."""
    read: Callable[[], str]
    """Reads it, from that folder; raises, or returns what was made of it."""
    status: int
    """Exit status of the command, or the one that a command has if this error reaches it."""

    @property
    def name(self) -> str:
        return f"{self.group}: {self.what}"


@dataclass(frozen=True)
class Outcome:
    """What a person sees."""

    status: int
    message: str
    changed: list[str]
    """Files that are no longer, or not any more, what they were."""


class _Exit(Exception):
    """A command that ended, with its status and its words."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status, self.said = status, said


def command(*words: str) -> Callable[[], str]:
    """The `lowrank` command, in this process, for a person who says yes to everything."""

    def read() -> str:
        result = CliRunner().invoke(app, list(words), input="y\n" * 9)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        raise _Exit(result.exit_code, result.stderr or result.stdout)

    return read


def outcome(case: BadInput, folder: Path) -> Outcome:
    """Make the input in an empty folder and have it read there.

    An error that is none of ours is raised: it is a defect.
    """
    case.made(folder)
    before = _contents(folder)
    with contextlib.chdir(folder):
        status, said = _read(case)
    after = _contents(folder)
    changed = sorted(
        name
        for name in before | after
        # whole prepared data may come, even if a task has no use for them
        if before.get(name) != after.get(name) and (name in before or "/cache/" not in name)
    )
    return Outcome(status, _message(said, folder), changed)


def _read(case: BadInput) -> tuple[int, str]:
    told: list[str] = []
    said = io.StringIO()

    def call() -> int:
        told.append(case.read())
        return 0

    try:
        with contextlib.redirect_stderr(said):
            status = run_command(call)
    except _Exit as ended:
        return ended.status, ended.said
    return status, said.getvalue() if status else told[0]


def _message(said: str, folder: Path) -> str:
    """Without the warnings before it, the folder's own path, and digests of what machines compute
    with other last digits."""
    begin = re.search(r"^error ", said, re.MULTILINE)
    said = said[begin.end() :] if begin else said
    said = re.sub(r"\b(?!0+\b)[0-9a-f]{64}\b|(?<=/)[0-9a-f]{16}\b", "…", said)
    said = " ".join(said.replace(f"{folder}/", "").replace(str(folder), ".").split())
    # how much of a long name is left, and where a file was cut, depend on the folder's name and on
    # the fields of a record
    said = re.sub(r"x{40,}(\.\.\.)?", "xxx...", said)
    return re.sub(r"line \d+ column \d+ \(char \d+\)", "line N column N (char N)", said)


def _contents(folder: Path) -> dict[str, str]:
    """Every file and link below, with its digest or target."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything; the user nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)

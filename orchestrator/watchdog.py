"""Ends a worker that hangs, so that Ray starts its group again and training goes on.

A process that waits for a device, a file system or a peer that will never answer looks alive to
Ray, and holds its machines until a person comes. The clock is CPython's own (`faulthandler`): it
needs no lock of the interpreter, writes where every thread stood, and ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import re
import sys
import time
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

RESTARTS_PER_LIMIT = 100
"""The clock is set again after a hundredth of its time: a step of a millisecond pays nothing for
that, and it is late by a hundredth."""


class Watchdog:
    """Ends this process when nothing happens for too long. One at a time in a process.

    Args:
        limit_s: How long nothing may happen.
        note: File that says where the threads stood; there only if it came to that.
    """

    def __init__(self, limit_s: float, note: Path) -> None:
        self.limit_s, self.note = limit_s, note
        self._file: TextIO | None = None
        self._set_at = 0.0

    def __enter__(self) -> Watchdog:
        try:
            self.note.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.note.open("a", encoding="utf-8")
        except OSError as error:
            # a full disk stops no training: then only the worker's log has it
            logger.warning("%s cannot be written: %s", self.note, error)
        self._set()
        return self

    def beat(self) -> None:
        """Something happened."""
        if time.monotonic() - self._set_at > self.limit_s / RESTARTS_PER_LIMIT:
            self._set()

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            self._file = None
            # the trial that begins another attempt may have removed it
            with contextlib.suppress(FileNotFoundError):
                if not self.note.stat().st_size:
                    self.note.unlink()

    def _set(self) -> None:
        faulthandler.dump_traceback_later(self.limit_s, file=self._file or sys.stderr, exit=True)
        self._set_at = time.monotonic()


def hung(folder: Path) -> str | None:
    """What the notes in a folder say, in one line: where each worker's training stood. None if no
    worker ever hung."""
    notes = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    stood = [f"{note.stem} {_last(note)}" for note in notes if note.stat().st_size]
    return f"{', '.join(stood)}; all threads: {folder}" if stood else None


def _last(note: Path) -> str:
    """The innermost call of the thread that trained, the last time that it hung; of who has no
    such threads, the last line."""
    text = note.read_text(encoding="utf-8", errors="replace")
    if "Timeout (" not in text:
        return text.splitlines()[-1]
    last = text.rpartition("Timeout (")[2]
    threads = [block for block in last.split("\n\n") if " in run_job" in block] or [last]
    call = re.search(r'File "(.*)", line (\d+) in (\S+)', threads[0])
    return f"in {call[3]} ({Path(call[1]).name}:{call[2]})" if call else "somewhere"

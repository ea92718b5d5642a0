"""Ctrl-C, or a notice to end: where they may stop what a campaign's driver does.

Python raises KeyboardInterrupt between any two instructions. In the middle of a request to the
tracking store that leaves a transaction open, or a library half set up, and what the driver still
has to write then, the end of its runs, fails. So a request is finished first; whoever cannot wait
asks a second time.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Request:
    """What the main thread is doing; signals are handled there, and nowhere else."""

    depth = 0
    """How many requests it is in, one inside the other."""
    asked = False
    """Whether a signal waits for their end."""


class interruptible:
    """A block in which both signals raise KeyboardInterrupt in the main thread.

    In any other thread it changes nothing, for only the main one may ask for signals.
    """

    def __enter__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            _Request.depth, _Request.asked = 0, False
            # one that is ignored, as Ctrl-C is behind `nohup`, stays ignored
            heard = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
            self._before = {each: signal.signal(each, _on_signal) for each in heard}

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)


@contextmanager
def one_piece() -> Iterator[None]:
    """A block that a first signal does not tear: it is raised at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Request.depth += 1
    try:
        yield
    finally:
        _Request.depth -= 1
        if _Request.depth == 0 and _Request.asked:
            _Request.asked = False
            raise KeyboardInterrupt


def _on_signal(signum: int, frame: Any) -> None:
    if _Request.depth > 0 and not _Request.asked:
        _Request.asked = True
        return
    _Request.asked = False
    raise KeyboardInterrupt

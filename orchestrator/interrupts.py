"""Ctrl-C, or a notice to end: where they may stop what a campaign's driver does.

Python raises KeyboardInterrupt between any two instructions. In the middle of a request to the
tracking store that leaves a transaction open, or a library half set up, and what the driver still
has to write then, the end of its runs, fails. So a request is finished first; whoever cannot wait
asks a second time. Where Python swallows the exception, in a `__del__` or a callback of C, nothing
would end at all: it is raised again until `heard` has seen it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 2.0
"""After which a signal that nobody has heard is raised once more: what unwinds takes less until it
meets the first handler."""


class _Request:
    """What the main thread is doing; signals are handled there, and nowhere else."""

    depth = 0
    """How many requests it is in, one inside the other."""
    asked = False
    """Whether a signal waits for their end."""
    raised: threading.Event | None = None
    """Of an exception that is on its way: set when it was heard."""
    lock = threading.RLock()


class interruptible:
    """A block in which both signals raise KeyboardInterrupt in the main thread.

    In any other thread it changes nothing, for only the main one may ask for signals.
    """

    def __enter__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            _Request.depth, _Request.asked = 0, False
            # one that is ignored, as Ctrl-C is behind `nohup`, stays ignored
            taken = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
            self._before = {each: signal.signal(each, _on_signal) for each in taken}

    def __exit__(self, *_: object) -> None:
        _heard()
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
            _raise()


@contextmanager
def heard() -> Iterator[None]:
    """A block whose end hears of the exception: what cleans up after it is not torn again."""
    try:
        yield
    finally:
        _heard()


def _on_signal(signum: int, frame: Any) -> None:
    if _Request.depth > 0 and not _Request.asked:
        _Request.asked = True
        return
    _raise()


def _raise() -> NoReturn:
    _Request.asked = False
    if _Request.raised is None:
        _Request.raised = threading.Event()
        threading.Thread(target=_remind, args=(_Request.raised,), daemon=True).start()
    raise KeyboardInterrupt


def _remind(was_heard: threading.Event) -> None:
    main = threading.main_thread()
    while not was_heard.wait(AGAIN_S) and main.is_alive():
        with _Request.lock:
            if not was_heard.is_set():
                signal.pthread_kill(main.ident or 0, signal.SIGTERM)


def _heard() -> None:
    with _Request.lock:
        if _Request.raised is not None:
            _Request.raised.set()
            _Request.raised = None

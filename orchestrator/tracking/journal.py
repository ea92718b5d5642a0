"""The curve of a training, on disk before it is anywhere else.

Every point is one line, each step once: a training that goes on after a crash computes again what
came after its last state, and what it had told already is not told twice. So nothing is told that
could not be written down: it waits for the disk. A tracking store that is away gets the points
when it is back. Training waits for neither.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.records import CurvePoint
from orchestrator.tracking.patience import TrackingAway

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
"""Between two deliveries to a store that is away. A point comes every few seconds, and the model's
own run is written by who waits: five minutes late is soon enough for a curve."""
LEAST_APART = 20
"""Times the duration of the last failed delivery: a server that hangs instead of refusing costs a
twentieth of the training's time."""


@dataclass(frozen=True, slots=True)
class Stamped:
    """A point and when it was made. A store takes the same point with the same time only once,
    so a delivery whose answer was lost can be made again."""

    at_ms: int
    """Since the epoch."""
    point: CurvePoint


class Journal:
    """The points of one training.

    Args:
        path: Its file, JSON lines; on storage that outlives the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points = self._read()
        """All that are written down, in the order in which they came."""
        self._known = {_identity(each.point) for each in self.points}
        self._unwritten: list[Stamped] = []

    def add(self, points: list[CurvePoint]) -> list[Stamped]:
        """Write down the points of new steps, and those that could not be before; returns them.

        A file that cannot be written is a warning: training is worth more than its curve, which
        the model's record holds as well.
        """
        now = int(time.time() * 1000)
        new = [Stamped(now, each) for each in points if _identity(each) not in self._known]
        self._known |= {_identity(each.point) for each in new}
        self._unwritten += new
        try:
            self._append(self._unwritten)
        except OSError as error:
            logger.warning("%s: the curve cannot be written down: %s", self.path, error)
            return []
        written, self._unwritten = self._unwritten, []
        self.points += written
        return written

    def settle(self) -> None:
        """The training is over: what is on its way to the storage arrives."""
        self.add([])

    def remove(self) -> None:
        """It has been delivered, all of it."""
        self.path.unlink(missing_ok=True)

    def _append(self, new: list[Stamped]) -> None:
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"at_ms": e.at_ms, "point": asdict(e.point)}) for e in new]
        with self.path.open("a", encoding="utf-8") as file:
            # after a line that a killed process left unfinished
            file.write("\n" + "\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[Stamped]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        found: dict[tuple[int, float | None], Stamped] = {}
        for line in filter(None, text.splitlines()):
            try:
                values = json.loads(line)
                each = Stamped(int(values["at_ms"]), CurvePoint(**values["point"]))
                # a disk that was full had taken some lines of those that were written again
                found.setdefault(_identity(each.point), each)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                logger.warning("%s: a line that is no point is left out", self.path)
        return list(found.values())


def _identity(point: CurvePoint) -> tuple[int, float | None]:
    """A step is told once at one rate: after a divergence it is another training."""
    return point.step, point.learning_rate


class CurveSink:
    """Takes a training's points: into the journal, and on to the store when it answers.

    Args:
        journal: Of this training. What an earlier attempt wrote down is delivered again.
        send: Delivers points, all or none; raises `TrackingAway`.
    """

    def __init__(self, journal: Journal, send: Callable[[list[Stamped]], None]) -> None:
        self._journal, self._send = journal, send
        self._waiting = list(journal.points)
        self._next, self._pause = 0.0, FIRST_PAUSE_S

    def __call__(self, points: list[CurvePoint]) -> None:
        self._waiting += self._journal.add(points)
        if self._waiting and time.monotonic() >= self._next:
            self._deliver()

    def _deliver(self) -> None:
        began = time.monotonic()
        try:
            self._send(self._waiting)
        except TrackingAway as error:
            now = time.monotonic()
            self._next = now + max(self._pause, LEAST_APART * (now - began))
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
            logger.warning("%d points of the curve wait: %s", len(self._waiting), error)
        else:
            self._waiting, self._pause = [], FIRST_PAUSE_S

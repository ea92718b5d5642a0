"""States, curve and notes of a training whose machine may be gone at any time.

What a process writes here goes to the bucket, and the next one reads it there. With a folder as
storage these are the plain classes.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from orchestrator.bucket.mirror import BucketMirror
from orchestrator.bucket.objects import DamagedError
from orchestrator.bucket.places import opened
from orchestrator.errors import StorageError
from orchestrator.snapshot import DIGITS, KEPT, Snapshot, SnapshotError, SnapshotStore
from orchestrator.tracking.journal import Journal, Stamped

logger = logging.getLogger(__name__)

LEAST_APART = 20
"""Times the duration of the last upload of a curve: a twentieth of the time is spent on it, as on
states."""


def states_at(place: str, kept: int = KEPT, needed: bool = False) -> SnapshotStore:
    """The states of a training, by the place of their folder.

    Args:
        place: A path or a URI.
        kept: How many of them.
        needed: Whether the training cannot go on without them, so that a bucket which is away is
            waited for.
    """
    mirror, folder = opened(place)
    if isinstance(mirror, BucketMirror):
        return BucketStates(folder, mirror, kept, needed)
    return SnapshotStore(folder, kept)


def journal_at(place: str) -> Journal:
    """The curve of a training, by the place of its file."""
    mirror, path = opened(place)
    return BucketJournal(path, mirror) if isinstance(mirror, BucketMirror) else Journal(path)


class BucketStates(SnapshotStore):
    """States in a bucket; here they are only while one is written or read.

    A state counts when its folder is sealed there. Saving does not wait for a bucket that is away,
    unless it is `needed`: the training goes on, and a later state is tried again.
    """

    def __init__(
        self, folder: Path, mirror: BucketMirror, kept: int = KEPT, needed: bool = False
    ) -> None:
        super().__init__(folder, kept)
        self._mirror = mirror
        self._sender = mirror if needed else mirror.impatient

    def save(self, step: int, snapshot: Snapshot) -> None:
        target = self._of(step)
        try:
            super().save(step, snapshot)
            self._sender.push_folder(target)
            self._forget_old()
        finally:
            self._sender.drop(target)

    def _forget_old(self) -> None:
        for old in _steps(self._sender, self.folder)[self.kept :]:
            self._sender.forget(self._of(old))

    def steps(self) -> list[int]:
        return _steps(self._mirror, self.folder)

    def load(self, step: int) -> Snapshot:
        try:
            with self._mirror.borrowed(self._of(step)) as found:
                if not found:
                    raise SnapshotError(f"{self._mirror.place(self._of(step))} is gone")
                return super().load(step)
        except DamagedError as error:
            raise SnapshotError(str(error)) from error

    def clear(self) -> None:
        self._mirror.forget(self.folder)

    def _of(self, step: int) -> Path:
        return self.folder / f"{step:0{DIGITS}d}"


class BucketJournal(Journal):
    """A curve whose file is sent now and then; what came after the last time is computed again
    by whoever goes on, and told again."""

    def __init__(self, path: Path, mirror: BucketMirror) -> None:
        mirror.fetch_file(path)
        self._now = mirror.impatient
        self._next, self._unsent = 0.0, False
        super().__init__(path)

    def remove(self) -> None:
        super().remove()
        self._now.push_file(self.path)

    def settle(self) -> None:
        super().settle()
        if self._unsent:
            self._send()

    def _append(self, new: list[Stamped]) -> None:
        super()._append(new)
        self._unsent = self._unsent or bool(new)
        if self._unsent and time.monotonic() >= self._next:
            self._send()

    def _send(self) -> None:
        began = time.monotonic()
        try:
            self._now.push_file(self.path)
            self._unsent = False
        except StorageError as error:
            # training is worth more than its curve, which the model's record holds as well
            logger.warning("the curve cannot be sent: %s", error)
        now = time.monotonic()
        self._next = now + LEAST_APART * (now - began)


def _steps(mirror: BucketMirror, folder: Path) -> list[int]:
    names = mirror.sealed_names(folder)
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)

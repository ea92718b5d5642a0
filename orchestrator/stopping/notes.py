"""What rungs saw and decided of each trial: a file beside the campaign's models, written before
anybody acts on it.

One file per trial, so that a campaign of thousands writes no more for an arrival than one of ten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

from lowrank.plain_json import read_json, write_json
from orchestrator.errors import CampaignError, StorageError, storage_error
from orchestrator.layout import Layout
from orchestrator.typed import typed


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """A trial at a rung."""

    rung: float
    """Part of the training's steps."""
    step: int
    """Of the validation."""
    validation: float | None
    """The task's metric; None if it was not finite."""
    excess: float
    """How far the size is above what was asked, in density."""
    density: float | None
    """As the projection left it; None of a method that has none."""
    kept: bool
    reason: str
    rank: int
    """Non-dominated, from 0."""
    place: int
    """From 1."""
    among: int
    outlook: float | None = None
    """What it was compared by, smaller is better (`outlook`); None if it was not finite, and in
    notes of earlier versions, which compared by the validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Of one trial."""

    key: str
    task: str
    total_steps: int
    """Of its training."""
    passed: list[Passed] = field(default_factory=list)
    """In the order of the rungs; the last one may have stopped it."""
    ended_at: int | None = None
    """Step at which its training heard of it and stopped; None as long as it has not."""
    recorded: bool = False
    """Whether its MLflow run says so."""

    @property
    def stopped(self) -> Passed | None:
        """Where it was stopped, if it was."""
        return self.passed[-1] if self.passed and not self.passed[-1].kept else None


class Notes:
    """Those of one task.

    Args:
        layout: Of the campaign.
        task: The task's name.

    Raises:
        StorageError: One of them cannot be read.
    """

    def __init__(self, layout: Layout, task: str) -> None:
        self._layout, self._task = layout, task
        self._notes = {note.key: note for note in read_notes(layout) if note.task == task}

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes.values())

    def get(self, key: str) -> Note | None:
        return self._notes.get(key)

    def passed(self, key: str, total_steps: int, passed: Passed) -> None:
        """A trial was at a rung.

        Raises:
            StorageError: It cannot be written; then it was not.
        """
        note = self._notes.get(key) or Note(key=key, task=self._task, total_steps=total_steps)
        self._save(replace(note, passed=[*note.passed, passed]))

    def ended(self, key: str, step: int | None = None, recorded: bool = False) -> None:
        """A trial that was stopped is over.

        Raises:
            StorageError: It cannot be written.
        """
        note = self._notes[key]
        step = note.ended_at if step is None else step
        self._save(replace(note, ended_at=step, recorded=note.recorded or recorded))

    def _save(self, note: Note) -> None:
        path = self._layout.stopping / f"{note.key}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(note))
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            self._layout.mirror.push_file(path)
        except CampaignError:
            if note.key not in self._notes:
                path.unlink(missing_ok=True)  # what the bucket does not know is not decided
            raise
        self._notes[note.key] = note


def read_notes(layout: Layout) -> list[Note]:
    """All of a campaign.

    Raises:
        StorageError: One of them cannot be read.
    """
    layout.mirror.fetch_files(layout.stopping)
    found = []
    for path in sorted(layout.stopping.glob("*.json")):
        try:
            note = typed(Note, read_json(path))
            if note.key != path.stem:
                raise ValueError(f"key: must be that of the file's name, got {note.key!r:.60}")
            found.append(note)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{path} cannot be read: {error}; without the file the trial is trained, and its "
                "rungs do not know it"
            ) from error
    return found

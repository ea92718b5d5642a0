"""What a campaign has on its disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.layout import Layout
from orchestrator.wording import count

BESIDE = 2 * 10**6
"""Bytes that a trial leaves besides its model's folders: `lowrank`'s source in MLflow's copy (0.6
MB), its run's curve, record and plots (0.1 to 0.3 MB), Ray Tune's notes of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Bytes of a campaign's files, as `ls` shows them; the database of MLflow's runs, which
    campaigns share, does not count."""

    models: int
    artifacts: int
    """MLflow's files, if they lie under the storage."""
    states: int
    data: int
    """Prepared data that the campaign reads; other campaigns may read them too."""
    other: int

    @property
    def total(self) -> int:
        return self.models + self.artifacts + self.states + self.data + self.other

    def in_words(self, budget: int | None = None) -> str:
        """`1.20 GB of 20.0 GB on disk: models 0.50 GB, ...`."""
        of = "" if budget is None else f" of {count(budget, 'B')}"
        named = {
            "models": self.models,
            "MLflow's copies": self.artifacts,
            "states of trainings": self.states,
            "prepared data": self.data,
            "other": self.other,
        }
        parts = [f"{name} {count(value, 'B')}" for name, value in named.items() if value]
        return f"{count(self.total, 'B')}{of} on disk" + (f": {', '.join(parts)}" if parts else "")


def usage(layout: Layout, data: Iterable[str]) -> Usage:
    """Look once; other processes may write meanwhile.

    Args:
        layout: Of the campaign.
        data: Content hashes of the prepared data that it reads.
    """
    models, states = layout.root / "models", layout.root / "snapshots"
    inside = num_bytes(layout.root)
    known = num_bytes(models), num_bytes(states)
    return Usage(
        models=known[0],
        artifacts=num_bytes(layout.artifacts / layout.campaign),
        states=known[1],
        data=sum(num_bytes(layout.cache / name) for name in set(data)),
        other=max(0, inside - sum(known)),
    )


class Disk:
    """What a campaign holds at most, without a walk through all its files for each model.

    A walk takes longer the more there is, and there is one more model after each training: who
    looked each time would spend the square of their number. So what a model has left is added to
    what the last look found.

    Args:
        layout: Of the campaign.
        data: Content hashes of the prepared data that it reads.
    """

    def __init__(self, layout: Layout, data: Iterable[str] = ()) -> None:
        self._layout, self._data = layout, set(data)
        self._most: int | None = None

    def look(self) -> Usage:
        """Walk through all files."""
        found = usage(self._layout, self._data)
        self._most = found.total
        return found

    def wrote(self, key: str) -> None:
        """A model has been trained, or its weights have been fetched back.

        Args:
            key: Of the model; what lies under it counts, and as much again for MLflow's copy.
        """
        if self._most is None:
            return
        home, layout = num_bytes(self._layout.model(key)), self._layout
        states = num_bytes(layout.snapshots(key)) + num_bytes(layout.train / key)
        self._most += 2 * home + states + BESIDE

    @property
    def most(self) -> int:
        """Bytes, no fewer than there are; looks if it has to."""
        return self.look().total if self._most is None else self._most


def num_bytes(path: Path | str) -> int:
    """Of a file, or of all files in a folder; 0 if there is nothing. Links are not followed."""
    try:
        with os.scandir(path) as entries:
            return sum(_entry(entry) for entry in entries)
    except NotADirectoryError:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _entry(entry: os.DirEntry[str]) -> int:
    try:
        if entry.is_dir(follow_symlinks=False):
            return num_bytes(entry.path)
        return entry.stat(follow_symlinks=False).st_size
    except OSError:  # gone meanwhile
        return 0

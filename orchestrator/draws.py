"""What a sampler suggested, kept beside the campaign's models.

A campaign that goes on must plan the trials that it had, on another machine and with other versions
of what suggests them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lowrank.plain_json import read_json, write_json
from orchestrator.errors import StorageError, storage_error

DRAWS = "draws.json"
"""In a campaign's folder, and among the artifacts of each task's run."""

Values = dict[str, Any]


class Draws:
    """Batches of suggested values, by a key of all that was known when they were suggested.

    Args:
        path: Of the file that keeps them; None keeps them in memory.
        kept: Batches that are known already.

    Raises:
        StorageError: The file is no such file.
    """

    def __init__(
        self, path: Path | None = None, kept: Mapping[str, list[Values]] | None = None
    ) -> None:
        self._path = path
        self._kept = dict(kept or {}) if path is None else _read(path)

    def batch(self, key: str, suggest: Callable[[], list[Values]]) -> list[Values]:
        """The batch of a key; what is new is kept before anybody hears of it."""
        if key not in self._kept:
            self._kept[key] = suggest()
            self._save()
        return self._kept[key]

    def _save(self) -> None:
        if self._path is None:
            return
        try:
            write_json(self._path, self._kept)
        except OSError as error:
            raise storage_error(self._path, error) from error


def parse(values: Any) -> dict[str, list[Values]]:
    """What such a file holds.

    Raises:
        ValueError: It is something else.
    """
    right = isinstance(values, dict) and all(
        isinstance(batch, list) and all(isinstance(each, dict) for each in batch)
        for batch in values.values()
    )
    if not right:
        raise ValueError("it must hold lists of values by key")
    return dict(values)


def _read(path: Path) -> dict[str, list[Values]]:
    try:
        return parse(read_json(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}; without the file the sampler suggests anew, and "
            "trials that it suggested before may no longer be asked for"
        ) from error

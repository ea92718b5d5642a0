"""Trials of earlier campaigns, as they were read once: what a warm start is made of.

They are kept beside the campaign's models, so that it goes on with the trials that it had, whatever
became of the earlier campaigns' runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowrank.plain_json import read_json, write_json
from orchestrator.errors import StorageError, storage_error
from orchestrator.spec import CampaignSpec, content_hash
from orchestrator.spec_tasks import AnyTask
from orchestrator.typed import typed

EARLIER = "warm-start.json"
"""In a campaign's folder, and among the artifacts of each task's run."""


@dataclass(frozen=True, kw_only=True)
class EarlierTrial:
    """A finished trial of another campaign, of a task with the same data and metric."""

    campaign: str
    """Its MLflow experiment."""
    run_id: str
    method_name: str
    config: dict[str, Any]
    """Its whole method, as it ran."""
    task_digest: str
    """Of the model and its training; empty if nobody knows."""
    loss: float
    """Its quality on validation, the smaller the better."""
    excess: float
    """By how much it is larger than it was to be, in density."""


class Readings:
    """What was read for each task.

    Args:
        path: Of the file that keeps them; None keeps them in memory.
        text: What such a file holds, if it is read from elsewhere.

    Raises:
        StorageError: The file is no such file.
    """

    def __init__(self, path: Path | None = None, text: str | None = None) -> None:
        self._path = path
        self._kept = parse(json.loads(text)) if text else {} if path is None else _read(path)

    def knows(self, spec: CampaignSpec, task: AnyTask, data_hash: str) -> bool:
        """Whether a task's earlier trials have been read, or it asks for none."""
        return spec.search.warm_start is None or reading_key(spec, task, data_hash) in self._kept

    def of(self, spec: CampaignSpec, task: AnyTask, data_hash: str) -> list[EarlierTrial]:
        """A task's earlier trials, as far as they have been read; a spec may ask for none."""
        if spec.search.warm_start is None:
            return []
        return self._kept.get(reading_key(spec, task, data_hash), [])

    def add(
        self, spec: CampaignSpec, task: AnyTask, data_hash: str, found: Sequence[EarlierTrial]
    ) -> None:
        """Take a reading up; it is kept by `save`."""
        self._kept[reading_key(spec, task, data_hash)] = list(found)

    def save(self) -> None:
        """Write whole or not at all."""
        if self._path is None:
            return
        values = {key: [asdict(trial) for trial in found] for key, found in self._kept.items()}
        try:
            write_json(self._path, values)
        except OSError as error:
            raise storage_error(self._path, error) from error


def reading_key(spec: CampaignSpec, task: AnyTask, data_hash: str) -> str:
    """Of what decides which trials are read: how many are used, and for what, is decided later."""
    assert spec.search.warm_start is not None
    return content_hash([task.name, data_hash, sorted(spec.search.warm_start.campaigns)])


def task_digest(task: AnyTask) -> str:
    """Of all that trials of two tasks with the same data must have in common to be compared: the
    model and its training, not what compresses it."""
    left_out = {"name", "method", "resources", "data"}
    return content_hash(task.model_dump(mode="json", exclude=left_out))


def parse(values: Any) -> dict[str, list[EarlierTrial]]:
    """What such a file holds.

    Raises:
        ValueError: It is something else.
    """
    return typed(dict[str, list[EarlierTrial]], values)


def _read(path: Path) -> dict[str, list[EarlierTrial]]:
    try:
        return parse(read_json(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}; without the file the earlier campaigns are read "
            "anew, and trials that came from them may no longer be asked for"
        ) from error

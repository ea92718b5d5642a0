"""Training states on disk: written whole, checked when they are read, the last ones kept.

Safetensors and JSON; nothing is unpickled. A state is a folder that gets its name when it is
complete, so a process that dies while it writes leaves the states before it as they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank.export import sha256_of
from lowrank.plain_json import read_json
from orchestrator.errors import CampaignError, storage_error

logger = logging.getLogger(__name__)

TENSORS, FACTS = "state.safetensors", "state.json"
KEPT = 2
"""The last state, and the one before it for when that is damaged."""
DIGITS = 9
"""Of the step in a state's name, so that names sort like steps."""


class SnapshotError(CampaignError):
    """A state is damaged."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A training after one of its steps."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    """JSON."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, without it."""
        found = {k: v for k, v in self.tensors.items() if k.startswith(prefix)}
        return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


class SnapshotStore:
    """The states of one training.

    Args:
        folder: Theirs alone, on storage that every worker sees.
        kept: How many.
    """

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder, self.kept = folder, kept

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Keep a state, and forget all but the last ones.

        Raises:
            StorageError: It cannot be written; the states before it are still there.
        """
        target = self.folder / f"{step:0{DIGITS}d}"
        partial = self.folder / f".{target.name}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(snapshot.tensors, partial / TENSORS)
            facts = json.loads(json.dumps(snapshot.facts))  # as they will be read
            sealed = {
                "sha256": sha256_of(partial / TENSORS),
                "facts_sha256": _digest(facts),
                "facts": facts,
            }
            (partial / FACTS).write_text(json.dumps(sealed), encoding="utf-8")
            for path in (partial / TENSORS, partial / FACTS):
                _to_disk(path)
            # what was saved at this step before, by an attempt that died
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise storage_error(target, error) from error
            raise SnapshotError(f"{target}: cannot be written: {error}") from error
        self._forget_old()

    def _forget_old(self) -> None:
        for old in self.steps()[self.kept :]:
            shutil.rmtree(self.folder / f"{old:0{DIGITS}d}", ignore_errors=True)

    def steps(self) -> list[int]:
        """Of the states that are there, the last one first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            (int(p.name) for p in self.folder.iterdir() if p.name.isdigit()), reverse=True
        )

    def last_whole(self) -> int | None:
        """The step of the last state that can be read; damaged ones after it are named in the
        log."""
        for step in self.steps():
            try:
                self.load(step)
            except SnapshotError as error:
                logger.warning("%s; the state before it is used", error)
            else:
                return step
        return None

    def load(self, step: int) -> Snapshot:
        """A state, checked against its digest.

        Raises:
            SnapshotError: A file is missing or damaged.
        """
        folder = self.folder / f"{step:0{DIGITS}d}"
        try:
            # a value may be infinite: the best so far, before there is one
            found = read_json(folder / FACTS, max_bytes=None, finite=False)
            facts = found["facts"]
            # states of earlier versions have no digest of their facts
            if _digest(facts) != found.get("facts_sha256", _digest(facts)):
                raise SnapshotError(f"{folder / FACTS} is not what was written")
            if sha256_of(folder / TENSORS) != found["sha256"]:
                raise SnapshotError(f"{folder / TENSORS} is not what was written")
            if not isinstance(facts, dict):
                raise SnapshotError(f"{folder / FACTS}: facts must be a table, got {facts!r:.60}")
            return Snapshot(tensors=load_file(folder / TENSORS), facts=facts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise SnapshotError(f"{folder} is damaged: {type(error).__name__}: {error}") from error

    def clear(self) -> None:
        """Forget all of them: the training is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    """A rename must not reach the disk before what it names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""A finished model's weights under models/KEY: here, in MLflow alone, or given up.

The file `released.json` beside the record says which. It is written before the weights go, so a
process that dies in between leaves a model that is there although it need not be, and never one
that is missing without a word.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lowrank.export import WEIGHTS, sha256_of
from lowrank.plain_json import read_json
from orchestrator.errors import CampaignError
from orchestrator.records import ModelRecord

RELEASED = "released.json"

Fetch = Callable[[str, Path], Path]
"""From the address of a logged model and an empty folder to the exported model in it."""


class WeightsGoneError(CampaignError):
    """The weights of a model are asked for that were given up, or MLflow has others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Released:
    """Where the weights are that are not here."""

    weights: Literal["mlflow", "nowhere"]
    num_bytes: int


def released(home: Path) -> Released | None:
    """What became of a model's weights; None if they are to be here."""
    try:
        found = read_json(home / RELEASED)
        where: Literal["mlflow", "nowhere"] = found["weights"]
        if where not in ("mlflow", "nowhere"):
            raise ValueError(where)
        return Released(weights=where, num_bytes=int(found["num_bytes"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # written whole, and damaged since: MLflow is asked for what is not here
        return None if (home / WEIGHTS).exists() else Released(weights="mlflow", num_bytes=0)


def release(home: Path, weights: Literal["mlflow", "nowhere"]) -> None:
    """Remove a model's weights from its folder.

    Args:
        home: models/KEY.
        weights: Where they are from now on; `nowhere` too if they were in MLflow alone before.
    """
    file, before = home / WEIGHTS, released(home)
    size = file.stat().st_size if file.exists() else before.num_bytes if before else 0
    note = home / RELEASED
    partial = note.with_suffix(".tmp")
    text = json.dumps(asdict(Released(weights=weights, num_bytes=size)))
    partial.write_text(text, encoding="utf-8")
    partial.replace(note)
    file.unlink(missing_ok=True)


def bring_back(record: ModelRecord, home: Path, fetch: Fetch) -> None:
    """Have a model's weights in its folder again; nothing if they are there.

    Args:
        record: Of the model.
        home: models/KEY.
        fetch: Downloads a logged model.

    Raises:
        WeightsGoneError: They were given up, or what MLflow has are other weights.
    """
    note = released(home)
    if note is None:
        return
    if not (home / WEIGHTS).exists():
        if note.weights == "nowhere" or record.model_uri is None:
            raise WeightsGoneError(
                f"the weights of model {record.key} were given up to stay under retention.budget; "
                "its record and its curve are there"
            )
        partial = home.with_name(home.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            file = fetch(record.model_uri, partial) / WEIGHTS
            if sha256_of(file) != record.export_sha256:
                raise WeightsGoneError(f"{record.model_uri} holds other weights than its record")
            shutil.move(file, home / f"{WEIGHTS}.tmp")
            (home / f"{WEIGHTS}.tmp").replace(home / WEIGHTS)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    (home / RELEASED).unlink(missing_ok=True)

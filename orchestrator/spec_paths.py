"""No relative path goes past the command line: workers run in other folders.

Data and models are looked for beside the spec file first, then in the current folder; what the
campaign writes (storage, SQLite) is relative to the current folder.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.spec import CampaignSpec
from orchestrator.spec_errors import Problem
from orchestrator.spec_yaml import Document, Place
from orchestrator.wording import LONGEST_PATH, cut

_SQLITE = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<path>[^?]+)(?P<options>.*)")
_BUILDERS = {"arrow", "csv", "json", "pandas", "parquet", "sql", "text", "webdataset", "xml"}
"""Names that the `datasets` library reads as a format, even beside a folder of that name."""
_NOT_PATHS = {"databricks", "databricks-uc", "uc"}
"""Tracking and registry URIs of MLflow without `://` that are not folders."""


def resolve_inputs(document: Document) -> list[Problem]:
    """Make the paths of data and models in `document` absolute; return what was not found.

    Entries that are not of the expected type are left for the validation to name.
    """
    folders = [Path(document.path).absolute().parent, Path.cwd()]
    problems: list[Problem] = []
    for place, task in _blocks(document.data.get("tasks")):
        data, model = task.get("data"), task.get("model")
        if isinstance(data, dict) and data.get("source") == "files":
            problems += _resolve_files(data, (*place, "data"), folders)
        if isinstance(data, dict) and data.get("source") in ("datasets", "glue"):
            _resolve_dataset(data, folders)
        if isinstance(model, dict):
            problems += _resolve_model(model, (*place, "model"), folders)
    return problems


def resolve_outputs(spec: CampaignSpec) -> CampaignSpec:
    """The same spec with `storage` and the tracking URIs made absolute."""
    tracking = spec.tracking.model_copy(
        update={
            "uri": _absolute_uri(spec.tracking.uri),
            "registry": _absolute_uri(spec.tracking.registry),
        }
    )
    return spec.model_copy(
        update={"storage": _absolute_storage(spec.storage), "tracking": tracking}
    )


def _blocks(tasks: Any) -> Iterator[tuple[Place, dict[str, Any]]]:
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        if isinstance(task, dict):
            yield ("tasks", index), task


def _resolve_files(data: dict[str, Any], place: Place, folders: list[Path]) -> Iterator[Problem]:
    for key in ("train", "validation", "test"):
        name = data.get(key)
        if not isinstance(name, str):
            continue
        found = _existing(name, folders)
        if found is None:
            yield Problem((*place, key), f"file not found: {_tried(name, folders)}")
        elif not os.path.isfile(found):
            yield Problem((*place, key), f"must be a file, got {found}")
        else:
            data[key] = found


def _resolve_dataset(data: dict[str, Any], folders: list[Path]) -> None:
    """Local folders and files of the `datasets` library; anything else is a hub name or a URL."""
    path, files = data.get("path"), data.get("data_files")
    if isinstance(path, str) and path not in _BUILDERS:
        data["path"] = _existing(path, folders) or path
    if not isinstance(files, dict):
        return
    for key, pattern in files.items():
        if isinstance(pattern, str):
            matches = (str(_join(folder, pattern)) for folder in folders)
            files[key] = next((each for each in matches if glob.glob(each)), pattern)


def _resolve_model(model: dict[str, Any], place: Place, folders: list[Path]) -> Iterator[Problem]:
    name = model.get("pretrained")
    if not isinstance(name, str):
        return
    if found := _existing(name, folders):
        model["pretrained"] = found
    elif name.startswith(("/", "./", "../", "~")):  # a hub name never begins like this
        yield Problem((*place, "pretrained"), f"folder not found: {_tried(name, folders)}")


def _existing(name: str, folders: list[Path]) -> str | None:
    candidates = (str(_join(folder, name)) for folder in folders)
    return next((path for path in candidates if name and os.path.exists(path)), None)


def _tried(name: str, folders: list[Path]) -> str:
    paths = dict.fromkeys(str(_join(folder, name)) for folder in folders)
    return " and ".join(cut(path, LONGEST_PATH) for path in paths)


def _join(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / os.path.expanduser(name)))


def _absolute_storage(storage: str) -> str:
    if storage.startswith("file://"):
        storage = storage.removeprefix("file://")
    return storage if "://" in storage else str(_join(Path.cwd(), storage))


def _absolute_uri(uri: str | None) -> str | None:
    """`sqlite:///runs/mlflow.db` and plain folders; servers and absolute paths stay."""
    if uri is None or uri in _NOT_PATHS:
        return uri
    if match := _SQLITE.fullmatch(uri):
        path = match["path"]
        if path.startswith(("/", ":memory:", "file:")):
            return uri
        return f"{match['scheme']}{_join(Path.cwd(), path)}{match['options']}"
    return uri if ":" in uri else str(_join(Path.cwd(), uri))

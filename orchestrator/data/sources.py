"""What the blocks of the spec say about a source: which splits it gives, and its name in words."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.splits import SPLITS
from orchestrator.errors import DataError
from orchestrator.spec_glue import Glue
from orchestrator.spec_tasks import Data, Files, HubDataset, PythonDocs


def plain(data: Data) -> PythonDocs | Files | HubDataset:
    """The source; of a task of GLUE, the data set that it is."""
    if not isinstance(data, Glue):
        return data
    form, folder = data.form, Path(data.path) / data.task
    found = HubDataset(
        source="datasets",
        path=data.path,
        name=data.task,
        splits={"train": "train", "test": form.validation},
        text=list(form.text),
    )
    if not folder.is_dir():
        return found
    # split by split: by itself the library takes `validation_mismatched` for validation too
    files = {name: f"{name}[-.]*" for name in found.splits.values()}
    return found.model_copy(update={"path": str(folder), "name": None, "data_files": files})


def given_splits(data: Files | HubDataset) -> dict[str, str]:
    """The path, or the split expression of the `datasets` library, of every given split.

    Raises:
        DataError: When train is not among them.
    """
    if isinstance(data, Files):
        given = {"train": data.train, "validation": data.validation, "test": data.test}
    else:
        given = {str(split): name for split, name in data.splits.items()}
    if given.get("train") is None:
        raise DataError(f"`splits` must name the split to train on, got {given}")
    return {split: name for split in SPLITS if (name := given.get(split)) is not None}


def described(data: PythonDocs | Files | HubDataset) -> str:
    """The source in words, for messages."""
    if isinstance(data, Files):
        return data.train
    return data.path if isinstance(data, HubDataset) else data.source


def origins(data: PythonDocs | Files | HubDataset) -> dict[str, str]:
    """Where each split comes from, in words; a split that is not given comes from train."""
    if isinstance(data, Files):
        return dict.fromkeys(SPLITS, data.train) | given_splits(data)
    if isinstance(data, HubDataset):
        given = {split: f"{data.path}:{name}" for split, name in given_splits(data).items()}
        return dict.fromkeys(SPLITS, given["train"]) | given
    return dict.fromkeys(SPLITS, data.source)


def notes(data: Data) -> dict[str, str]:
    """What a record of the data says of their source."""
    if not isinstance(data, Glue):
        return {"source": data.source}
    return {"source": f"GLUE {data.task}", "split_used_as_test": data.form.validation}

"""What the blocks of the spec say about a source: which splits it gives, and its name in words."""

from __future__ import annotations

from orchestrator.data.splits import SPLITS
from orchestrator.errors import DataError
from orchestrator.spec import Data, Files, HubDataset


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


def described(data: Data) -> str:
    """The source in words, for messages."""
    if isinstance(data, Files):
        return data.train
    return data.path if isinstance(data, HubDataset) else data.source


def origins(data: Data) -> dict[str, str]:
    """Where each split comes from, in words; a split that is not given comes from train."""
    if isinstance(data, Files):
        return dict.fromkeys(SPLITS, data.train) | given_splits(data)
    if isinstance(data, HubDataset):
        given = {split: f"{data.path}:{name}" for split, name in given_splits(data).items()}
        return dict.fromkeys(SPLITS, given["train"]) | given
    return dict.fromkeys(SPLITS, data.source)

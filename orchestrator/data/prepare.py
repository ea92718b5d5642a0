"""Prepare once, then open: a folder per content hash, which appears complete or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from pathlib import Path

from orchestrator.bucket.folder import Mirror
from orchestrator.bucket.objects import DamagedError
from orchestrator.bucket.places import FOLDER
from orchestrator.data.labelled import LabelledPreparation
from orchestrator.data.language import LanguagePreparation, check_windows
from orchestrator.data.prepared import INVENTORY, PreparedData, describe, write_inventory
from orchestrator.errors import DataError, StorageError
from orchestrator.spec_tasks import AnyTask, LanguageModelling

logger = logging.getLogger(__name__)

Preparation = LanguagePreparation | LabelledPreparation


def prepare_data(
    task: AnyTask, cache: Path, pretrained: str | None, mirror: Mirror = FOLDER
) -> PreparedData:
    """Read, split and tokenize the data of a task, unless the cache holds the result.

    The raw data are read in any case: their content decides the folder.

    Args:
        task: Its paths must be absolute, or hold for this process.
        cache: Folder of prepared folders, created when absent; processes may share it.
        pretrained: Folder or hub name of the pretrained model whose tokenizer applies; None
            trains a tokenizer on the training split.
        mirror: Of the cache: data that are in a bucket are fetched, and others go there.

    Returns:
        The opened `cache/CONTENT_HASH`.

    Raises:
        DataError: When the data are not as the task needs them.
        StorageError: When the cache cannot be written.
    """
    preparation = _preparation(task, pretrained)
    key = preparation.key()
    folder = cache / key
    try:
        mirror.fetch_folder(folder)
    except DamagedError as error:
        logger.warning("%s; the data are prepared again", error)
        mirror.forget(folder)
    found = (folder / INVENTORY).exists()
    if not found:
        _write(preparation, folder, key)
    # what was found here is read once, as the raw data are, before it is trusted
    prepared = PreparedData.open(folder, verify=found)
    if prepared.content_hash != key:
        raise DataError(
            f"{folder} holds other data: its content hash must be its name, got "
            f"{prepared.content_hash!r:.60}; delete the folder to have the data prepared again"
        )
    if isinstance(task, LanguageModelling):
        check_windows(prepared.info, task.context)
    mirror.push_folder(folder)
    logger.info("%s: %s", task.name, describe(prepared))
    return prepared


def _preparation(task: AnyTask, pretrained: str | None) -> Preparation:
    if isinstance(task, LanguageModelling):
        return LanguagePreparation(task, pretrained)
    return LabelledPreparation(task, pretrained)


def _write(preparation: Preparation, folder: Path, key: str) -> None:
    """Write beside the final folder, then rename: a reader never sees half of it."""
    draft = folder.with_name(f".{key}.{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
        write_inventory(draft, key, preparation.write(draft))
        _publish(draft, folder)
    except OSError as error:
        raise StorageError(f"cannot write prepared data to {folder.parent}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    try:
        os.rename(draft, folder)
    except OSError:
        # another process was faster: its folder holds the same, or opening it will tell
        if not (folder / INVENTORY).exists():
            raise

"""Takes over a dense reference that another campaign of the same storage has trained.

A key is a hash of all that decides a model, so with the same key it is the model that would be
trained here. Its files are copied: either campaign may be deleted, or free what it likes.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

from lowrank.export import WEIGHTS, sha256_of
from orchestrator.bucket.kept import journal_at
from orchestrator.errors import storage_error
from orchestrator.launch import Launch
from orchestrator.recording import trained
from orchestrator.records import RECORD, ModelRecord
from orchestrator.weights import RELEASED

logger = logging.getLogger(__name__)


def adopt(launch: Launch) -> str | None:
    """Copy a finished model with the key of a launch into its campaign; its MLflow run is still to
    be written.

    Returns:
        The campaign that it is from; None if no other has it whole.

    Raises:
        StorageError: It cannot be written, or the storage is away.
    """
    layout = launch.layout
    for campaign in layout.others():
        elsewhere = replace(launch, campaign=campaign)
        record = trained(elsewhere)
        if record is not None and _copied(elsewhere, launch, record):
            return campaign
    return None


def _copied(source: Launch, launch: Launch, record: ModelRecord) -> bool:
    """Whole or not at all; not if the other campaign changes it meanwhile."""
    layout, home = launch.layout, launch.layout.model(launch.key)
    draft = home.with_name(f"{home.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        there = source.layout.model(source.key)
        try:
            shutil.copytree(there, draft, ignore=shutil.ignore_patterns(RELEASED))
            if sha256_of(draft / WEIGHTS) != record.export_sha256:
                raise OSError("its weights are not what was exported")
        except OSError as error:
            logger.warning("%s is not taken over: %s", there, error)
            return False
        # what the other campaign measured, and where it logged the model, is its own
        own = replace(
            record, speed=[], int8=None, mlflow_run_id=None, model_uri=None, finished=None
        )
        own.save(draft / RECORD)
        # before the model is there: a run is written from both
        journal = journal_at(layout.mirror.place(layout.journal(launch.key)))
        journal.add(record.curve)
        journal.settle()
        shutil.rmtree(home, ignore_errors=True)
        draft.rename(home)
    except OSError as error:
        raise storage_error(home, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    layout.mirror.push_folder(home)
    return True

"""A trained model's MLflow run: written when the training is over, or whenever the store answers.

The files under models/KEY are the training's result. What is missing in MLflow can be written from
them at any time, in any process, and more than once.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from lowrank.export import WEIGHTS, sha256_of
from orchestrator.export_model import with_densities
from orchestrator.launch import Launch
from orchestrator.records import ModelRecord
from orchestrator.tracking import RunWriter
from orchestrator.tracking.journal import Journal
from orchestrator.watchdog import hung
from orchestrator.weights import released

logger = logging.getLogger(__name__)


def trained(launch: Launch) -> ModelRecord | None:
    """What an earlier attempt brought home, if its files are whole."""
    path = launch.layout.record(launch.key)
    if not path.exists():
        return None
    try:
        record = ModelRecord.load(path)
        if released(path.parent) is not None and not (path.parent / WEIGHTS).exists():
            logger.warning("%s: its weights were released, and MLflow has no run", path.parent)
            return None
        whole = sha256_of(path.parent / WEIGHTS) == record.export_sha256
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s cannot be used, the model is trained again: %s", path, error)
        return None
    if not whole:
        logger.warning("%s is not what was exported, the model is trained again", path.parent)
        return None
    return record


def record_model(launch: Launch, record: ModelRecord, writer: RunWriter) -> ModelRecord:
    """Write all that MLflow is to hold of a trained model, and end its run.

    Returns:
        The record with what it was given here: densities, where the model is in MLflow.

    Raises:
        TrackingAway: The store does not answer; what is missing can be written later.
    """
    home = launch.layout.model(launch.key)
    record = replace(
        record,
        export=str(home),
        mlflow_run_id=launch.run_id,
        method_name=launch.method_name,
        finished=record.finished or time.time(),
    )
    if launch.dense_record is not None:
        dense = ModelRecord.load(Path(launch.dense_record))
        record = replace(record, densities=with_densities(record, dense))
    journal = Journal(launch.layout.journal(launch.key))
    writer.points(journal.points, launch.metric)
    uri = writer.model(record, launch.job["task"]["kind"])
    record = replace(record, model_uri=uri)
    tags = {"model_uri": uri, "export": str(home)}
    stood = hung(launch.layout.hung(launch.key))
    writer.tags(tags | ({"hung": stood} if stood else {}))
    writer.record(record)
    record.save(launch.layout.record(launch.key))
    # the last thing written: a FINISHED run with a record is a model that needs nothing more
    writer.end("FINISHED")
    journal.remove()
    return record

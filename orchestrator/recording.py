"""A trained model's MLflow run: written when the training is over, or whenever the store answers.

The files under models/KEY are the training's result. What is missing in MLflow can be written from
them at any time, in any process, and more than once.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from lowrank.export import WEIGHTS, sha256_of
from orchestrator.bucket.kept import journal_at
from orchestrator.bucket.objects import DamagedError
from orchestrator.bucket.places import opened
from orchestrator.export_model import with_densities
from orchestrator.launch import Launch
from orchestrator.records import ModelRecord
from orchestrator.tracking import RunWriter
from orchestrator.watchdog import hung
from orchestrator.weights import released

logger = logging.getLogger(__name__)


def trained(launch: Launch) -> ModelRecord | None:
    """What an earlier attempt brought home, if its files are whole."""
    path = launch.layout.record(launch.key)
    try:
        if not launch.layout.mirror.fetch_folder(path.parent) or not path.exists():
            return None
        record = ModelRecord.load(path)
        if released(path.parent) is not None and not (path.parent / WEIGHTS).exists():
            logger.warning("%s: its weights are gone, the model is trained again", path.parent)
            return None
        whole = sha256_of(path.parent / WEIGHTS) == record.export_sha256
    except (OSError, ValueError, TypeError, KeyError, DamagedError) as error:
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
    mirror, home = launch.layout.mirror, launch.layout.model(launch.key)
    record = replace(
        record,
        export=mirror.place(home),
        mlflow_run_id=launch.run_id,
        method_name=launch.method_name,
        warm_start=launch.warm_start,
        finished=record.finished or time.time(),
    )
    if launch.dense_record is not None:
        elsewhere, path = opened(launch.dense_record)
        elsewhere.fetch_file(path)
        dense = ModelRecord.load(path)
        record = replace(record, densities=with_densities(record, dense))
    journal = journal_at(mirror.place(launch.layout.journal(launch.key)))
    # what a full disk kept out; curves of a ladder begin with what another run was told
    if journal.points and not launch.job.get("ladder"):
        journal.add(record.curve)
    writer.points(journal.points, launch.metric)
    uri = writer.model(replace(record, export=str(home)), launch.job["task"]["kind"])
    record = replace(record, model_uri=uri)
    tags = {"model_uri": uri, "export": record.export}
    mirror.fetch_files(launch.layout.hung(launch.key))
    stood = hung(launch.layout.hung(launch.key))
    writer.tags(tags | ({"hung": stood} if stood else {}))
    writer.record(record)
    record.save(launch.layout.record(launch.key))
    mirror.push_file(launch.layout.record(launch.key))
    # the last thing written: a FINISHED run with a record is a model that needs nothing more
    writer.end("FINISHED")
    journal.remove()
    return record


def record_stop(launch: Launch, *, rung: float, reason: str, step: int, writer: RunWriter) -> None:
    """Write of a training that was stopped early its curve, and where and why it was, and end its
    MLflow run.

    Raises:
        TrackingAway: The store does not answer; what is missing can be written later.
    """
    mirror = launch.layout.mirror
    journal = journal_at(mirror.place(launch.layout.journal(launch.key)))
    writer.points(journal.points, launch.metric)
    writer.stopped(rung, reason, step)
    journal.remove()

"""A ladder, or its trunk alone, as a Ray Tune trial: one Ray Train run after the other."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from orchestrator.bucket.kept import journal_at
from orchestrator.errors import CampaignError, TrialError
from orchestrator.ladder import Ladder, Starts
from orchestrator.launch import Launch
from orchestrator.tracking import RunWriter, TrackingAway
from orchestrator.trial import Train, run_launch
from orchestrator.workers import LocalWorkers

logger = logging.getLogger(__name__)


def ladder_trial(first: Launch, train: Train) -> None:
    """Train a trunk, then the branches that follow it, or one model of a chain after the other;
    reports the end of each model.

    A branch that fails does not keep the others from their models. A trunk does, and a model those
    below it in a chain.
    """
    from ray import tune

    models = [Launch(**fields) for fields in first.then]
    failures: dict[str, str] = {}
    trunk_failure = broken = None
    if first.is_trunk:
        try:
            run_trunk_launch(first, [_reporter(first.key)], train)
            tune.report({"trunk": 1, "failure": None})
        except TrialError as error:
            trunk_failure, broken = str(error), trunk_failed(str(error))
    else:
        models.insert(0, first)
    for model in models:
        report = _lost(model, broken) if broken else _model(model, train)
        if report["failure"]:
            failures[model.key] = report["failure"]
            if model.job["ladder"]["chain"]:
                broken = broken or f"the model above it in its chain failed: {report['failure']}"
        tune.report(report)
    tune.report({"trunk": 1, "failure": trunk_failure, "failures": failures})


def _reporter(key: str) -> Any:
    """Passes the reports of a training on, with whose they are."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class Reporter(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            super().after_report(run_context, [metrics[0] | {"model": key}], checkpoint)

    return Reporter()


def _lost(model: Launch, reason: str) -> dict[str, Any]:
    with contextlib.suppress(TrackingAway):
        RunWriter(model.tracking_uri, model.run_id).end("FAILED", reason)
    return {"ended": 1, "model": model.key, "failure": reason}


def _model(model: Launch, train: Train) -> dict[str, Any]:
    common = {"ended": 1, "model": model.key}
    try:
        record = run_launch(model, [_reporter(model.key)], train)
    except TrackingAway as error:
        logger.warning("%s", error)
        return common | {"failure": None, "unrecorded": True}
    except TrialError as error:
        return common | {"failure": str(error)}
    return common | {"failure": None, "quality": record.quality}


def trunk_failed(reason: str) -> str:
    """Why a branch has no model when its trunk has none."""
    return f"the trunk of its ladder failed: {reason}"


def run_trunk_launch(trunk: Launch, callbacks: list[Any], train: Train) -> None:
    """Train a trunk as far as it is not, and end its MLflow run.

    Raises:
        TrialError: Training failed; the run is ended as FAILED.
    """
    writer = RunWriter(trunk.tracking_uri, trunk.run_id)
    try:
        if not is_through(trunk):
            train(trunk, callbacks)
    except Exception as error:
        known = isinstance(error, CampaignError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        with contextlib.suppress(TrackingAway):
            writer.end("FAILED", reason)
        raise
    try:
        record_trunk(trunk, writer)
    except TrackingAway as error:
        # whoever launched it can wait longer
        logger.warning("%s", error)


def is_through(trunk: Launch) -> bool:
    """Whether every branch has its start, from an earlier attempt."""
    ladder = Ladder(**trunk.job["ladder"])
    return Starts(ladder.starts, LocalWorkers()).reached(ladder) == len(ladder.rungs)


def record_trunk(trunk: Launch, writer: RunWriter) -> None:
    """Deliver its curve, with the preview of the front, and end its run.

    Raises:
        TrackingAway: The store does not answer.
    """
    layout = trunk.layout
    journal = journal_at(layout.mirror.place(layout.journal(trunk.key)))
    writer.points(journal.points, trunk.metric)
    writer.end("FINISHED")
    journal.remove()

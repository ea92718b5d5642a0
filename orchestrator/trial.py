"""One model, dense reference or compressed, as a Ray Tune trial."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from orchestrator.errors import CampaignError, StoppedError, TrialError
from orchestrator.launch import Launch
from orchestrator.recording import record_model, record_stop, trained
from orchestrator.records import ModelRecord
from orchestrator.tracking import RunWriter, TrackingAway

logger = logging.getLogger(__name__)

Train = Callable[[Launch, list[Any]], ModelRecord | None]
"""Trains what a launch asks for and leaves its files at home; gets callbacks of Ray Train. Nothing
comes of a trunk but its starts. In a campaign `train_on_workers`; another one stands in where the
campaign itself is looked at."""


def run_launch(launch: Launch, callbacks: list[Any], train: Train) -> ModelRecord:
    """Train one model on its workers, bring its files home, and write its MLflow run.

    Raises:
        TrialError: Training failed; the run is ended as FAILED.
        StoppedError: It was stopped early.
        TrackingAway: The model is home, its run has still to be written.
    """
    writer = RunWriter(launch.tracking_uri, launch.run_id)
    try:
        record = trained(launch) or train(launch, callbacks)
        assert record is not None
        return record_model(launch, record, writer)
    except (TrackingAway, StoppedError):
        raise
    except Exception as error:
        known = isinstance(error, CampaignError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        # who launched it ends the run as well, and can wait longer
        with contextlib.suppress(TrackingAway):
            writer.end("FAILED", reason)
        raise


def tune_trial(config: dict[str, Any], train: Train) -> None:
    """The Tune trainable: one trial is one training, of `train_on_workers` as a rule, or those of
    a ladder."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from orchestrator.ladder_trial import ladder_trial

    launch: Launch = config["launch"]
    if launch.is_trunk or launch.then:
        return ladder_trial(launch, train)
    try:
        record = run_launch(launch, [TuneReportCallback()], train)
    except TrackingAway as error:
        logger.warning("%s", error)
        tune.report({"ended": 1, "failure": None, "unrecorded": True})
        return
    except TrialError as error:
        tune.report({"ended": 1, "failure": str(error)})
        return
    except StoppedError as stopped:
        tune.report({"ended": 1, "failure": None, "stopped": _stopped(launch, stopped)})
        return
    tune.report({"ended": 1, "failure": None, "quality": record.quality})


def _stopped(launch: Launch, stopped: StoppedError) -> dict[str, Any]:
    """What the trial reports of it; its MLflow run says the same, if the store answers."""
    try:
        record_stop(launch, **stopped.facts, writer=RunWriter(launch.tracking_uri, launch.run_id))
    except TrackingAway as error:
        logger.warning("%s", error)
        return stopped.facts | {"recorded": False}
    return stopped.facts | {"recorded": True}

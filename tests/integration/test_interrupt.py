"""Ctrl-C, or a notice to end: a clean end, and the same command goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lowrank.export import WEIGHTS
from orchestrator.campaign_records import CampaignResult
from orchestrator.disk import usage
from orchestrator.layout import Layout
from orchestrator.tracking import default_tracking_uri
from orchestrator.weights import released
from tests.integration.conftest import lowrank, start, wait_for, without_letters, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONLY_PACKAGES = ("--set", "search.density=[0.5]")


def test_interrupted_campaign_goes_on(tmp_path: Path) -> None:
    """By Ctrl-C; test_submission.py ends one by SIGTERM, which the same handler hears."""
    spec, storage = write_spec(tmp_path, "stopped")
    without_letters(spec)
    log = tmp_path / "log.txt"
    process = start(spec, log, *ONLY_PACKAGES)
    wait_for("dense: finished", log, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert "the same command goes on" in log.read_text()
    client = MlflowClient(default_tracking_uri(str(storage)))
    (experiment,) = [e for e in client.search_experiments() if e.name == "stopped"]
    statuses = {r.info.status for r in client.search_runs([experiment.experiment_id])}
    assert "RUNNING" not in statuses
    assert "KILLED" in statuses
    assert "FAILED" not in statuses

    # a disk that has no room for what one trial more leaves behind; beside the 40 MB nobody counts
    # how much one trial of such a size needs
    layout = Layout(storage, "stopped")
    with (layout.root / "by-hand").open("wb") as file:
        file.truncate(40 * 10**6)
    data = [path.name for path in layout.cache.iterdir()]
    budget = usage(layout, data).total + 100_000
    second = lowrank(spec, storage, "run", *ONLY_PACKAGES, "--set", f"retention.budget={budget} B")
    assert second.code == 0, second.output
    assert second.output.count("already finished") == 1
    statuses = {r.info.status for r in client.search_runs([experiment.experiment_id])}
    assert statuses == {"FINISHED"}

    assert "1 working copies that MLflow has too" in second.output
    assert "retention.budget must be at least" in second.output
    result = CampaignResult.load(layout.result)
    (trial,) = result.tasks[0].trials
    assert released(layout.model(trial.key)) is not None
    assert not (layout.model(trial.key) / WEIGHTS).exists()
    # for which it had to be fetched back, and was taken from MLflow
    assert trial.speed
    promotion = result.tasks[0].promotion
    assert promotion is not None
    assert promotion.promoted, promotion.sentence
    assert (layout.model(result.tasks[0].dense.key) / WEIGHTS).exists()
    assert "on disk: models" in lowrank(spec, storage, "status").output

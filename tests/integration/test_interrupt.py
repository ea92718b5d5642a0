"""Ctrl-C, or a notice to end: a clean end, and the same command goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking import default_tracking_uri
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

    second = lowrank(spec, storage, "run", *ONLY_PACKAGES)
    assert second.code == 0, second.output
    assert second.output.count("already finished") == 1
    statuses = {r.info.status for r in client.search_runs([experiment.experiment_id])}
    assert statuses == {"FINISHED"}

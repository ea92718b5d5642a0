"""The MLflow server is killed in the middle of a campaign, and started again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import start, wait_for, without_letters, write_spec
from tests.orchestrator.tracking.server import Server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


def test_a_campaign_outlives_its_tracking_server(tmp_path: Path) -> None:
    spec, _ = write_spec(tmp_path, "away")
    without_letters(spec)
    server, log = Server(tmp_path / "server"), tmp_path / "log.txt"
    server.start()
    asked = ["--set", "search.density=[0.5]", "--set", f"tracking.uri={server.uri}"]
    try:
        process = start(spec, log, *asked)
        wait_for("packages dense: step", log, process)
        server.kill()
        # the trial gives up after half a minute, and the driver goes on asking
        wait_for("its run is written later", log, process)
        wait_for("does not answer; it is asked again for 60 minutes", log, process)
        server.start()
        assert process.wait(300) == 0, log.read_text()
        assert "answers again" in log.read_text()
        client = MlflowClient(server.uri)
        (experiment,) = [e for e in client.search_experiments() if e.name == "away"]
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        keys = Counter(run.data.tags["lowrank.key"] for run in runs)
        assert set(keys.values()) == {1}
        assert len(keys) == 3, "the task, its dense reference and one trial"
        for run in runs:
            history = client.get_metric_history(run.info.run_id, "loss/train")
            steps = [metric.step for metric in history]
            assert len(steps) == len(set(steps))
            assert bool(steps) == (run.data.tags["lowrank.key"] != "task:packages")
    finally:
        server.kill()

"""Ctrl-C, or a notice to end: a clean end, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking import default_tracking_uri
from tests.integration.conftest import environment, lowrank, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONLY_PACKAGES = ("--set", "search.density=[0.5]")


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_interrupted_campaign_goes_on(asked: signal.Signals, tmp_path: Path) -> None:
    spec, storage = write_spec(tmp_path, "stopped")
    text = spec.read_text()
    start, end = text.index("  - name: letters"), text.index("  - name: packages")
    spec.write_text(text[:start] + text[end:])
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "jobs", "run", str(spec), *ONLY_PACKAGES],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
            # a test run in a shell's background inherits an ignored SIGINT, and would pass it on
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 240
        while "dense: finished" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        process.send_signal(asked)
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

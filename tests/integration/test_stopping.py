"""A draw that another one is ahead of is stopped on its way, and leaves the machine to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.campaign_records import CampaignResult
from orchestrator.layout import Layout
from orchestrator.tracking import default_tracking_uri
from tests.integration.conftest import lowrank, without_packages, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

# one after the other, the good rate first; many validations, so that a training of seconds hears
SEARCH = """search:
  density: [0.5]
  trials_per_density: 2
  repeats: 2
  finetune_learning_rate: [2.0e-3, 1.0e-8]
  stopping: {rungs: [0.1], keep: 0.5, at_least: 2}
"""


def stopping_spec(folder: Path) -> tuple[Path, Path]:
    spec, storage = write_spec(folder, "stops")
    without_packages(spec)
    text = spec.read_text()
    begin, end = text.index("method: {kind"), text.index("measure:")
    text = text[:begin] + "method: {kind: low-rank, steps: 80}\n" + SEARCH + text[end:]
    spec.write_text(text.replace("evaluate_every: 15", "evaluate_every: 4"))
    return spec, storage


def test_a_draw_is_stopped_and_the_campaign_goes_on(tmp_path: Path) -> None:
    spec, storage = stopping_spec(tmp_path)
    ran = lowrank(spec, storage)
    assert ran.code == 0, ran.output
    assert "stopped at rung 0.1, step" in ran.output
    assert "1 stopped early (1 at rung 0.1)" in ran.output
    assert "trial(s) failed" not in ran.output
    # all CPUs were free for the repeat, and for the measurement, which takes every one of them
    (task,) = CampaignResult.load(Layout(storage, "stops").result).tasks
    assert [trial.seed for trial in task.trials] == [3, 4]
    assert all(trial.speed for trial in task.trials)
    assert {trial.config["finetune_learning_rate"] for trial in task.trials} == {2e-3}
    assert task.failed == []
    (stopped,) = task.stopped
    assert stopped.config["finetune_learning_rate"] == 1e-8
    assert 8 <= stopped.step < stopped.total_steps == 80
    layout = Layout(storage, "stops")
    assert not layout.model(stopped.key).exists()
    assert not layout.snapshots(stopped.key).exists()
    assert not layout.journal(stopped.key).exists()
    assert not (layout.train / stopped.key).exists()

    client = MlflowClient(default_tracking_uri(str(storage)))
    (experiment,) = [e for e in client.search_experiments() if e.name == "stops"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 4 + ["KILLED"]
    (run,) = [run for run in runs if run.info.status == "KILLED"]
    assert run.data.tags["lowrank.key"] == stopped.key
    assert run.data.tags["stopped"] == stopped.reason
    assert run.data.tags["stopped.step"] == str(stopped.step)
    history = client.get_metric_history(run.info.run_id, "loss/train")
    assert max(point.step for point in history) <= stopped.step

    again = lowrank(spec, storage)
    assert again.code == 0, again.output
    assert "already stopped at rung 0.1" in again.output
    assert ": step " not in again.output
    assert "stopped: place 2 of 2" in lowrank(spec, storage, "status").output

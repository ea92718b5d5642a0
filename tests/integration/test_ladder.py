"""A ladder on real parts: one trial, several models, stopped between two of them."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.campaign_records import CampaignResult
from orchestrator.layout import Layout
from orchestrator.tracking import default_tracking_uri
from tests.integration.conftest import lowrank, start, wait_for, without_letters, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

CHAIN = (
    "--set",
    "method={kind: adaptive, steps: 24}",
    "--set",
    "search={density: [0.5, 0.3], ladder: true}",
)
LADDER = (
    "--set",
    "method={kind: adaptive, steps: 24}",
    "--set",
    "search={density: [0.5, 0.3], ladder: {by: trunk, first: 0.5, descent: 0.5, recovery: 0.5}}",
)


def test_a_ladder_goes_on_between_two_models(tmp_path: Path) -> None:
    spec, storage = write_spec(tmp_path, "ladder")
    without_letters(spec)
    layout, log = Layout(storage, "ladder"), tmp_path / "log.txt"
    process = start(spec, log, *LADDER)
    wait_for("density=0.5: finished", log, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert "packages trunk: step 24/24" in log.read_text()

    second = lowrank(spec, storage, "run", *LADDER)
    assert second.code == 0, second.output
    # neither what was reached nor what was finished is trained again
    assert "packages trunk: step" not in second.output
    assert "packages density=0.5: already finished" in second.output
    assert "packages density=0.3: finished" in second.output
    (task,) = CampaignResult.load(layout.result).tasks
    assert [trial.config["density"] for trial in task.trials] == [0.5, 0.3]
    assert not task.failed
    assert task.choice.key in {trial.key for trial in task.trials}
    assert task.promotion is not None
    assert task.promotion.promoted, task.promotion.sentence
    for trial, steps in zip(task.trials, (24, 36), strict=True):
        assert trial.densities is not None
        assert trial.densities.prunable <= trial.config["density"]
        assert trial.curve[-1].step == steps
        assert trial.speed
    assert not any((layout.root / "starts").glob("*"))

    client = MlflowClient(default_tracking_uri(str(storage)))
    (experiment,) = [e for e in client.search_experiments() if e.name == "ladder"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (trunk,) = [run for run in runs if run.data.tags.get("kind") == "trunk"]
    assert sum(run.data.tags.get("kind") == "trial" for run in runs) == 2
    preview = client.get_metric_history(trunk.info.run_id, "extras/projected")
    assert [point.step for point in preview] == [12, 24]

    # apart, after a model was lost: its trunk trains again, and the model has the same bits
    before = [trial.export_sha256 for trial in task.trials]
    shutil.rmtree(layout.model(task.trials[1].key))
    apart = lowrank(spec, storage, "run", *LADDER, "--set", "search.ladder.run=apart")
    assert apart.code == 0, apart.output
    assert "packages trunk: step" in apart.output
    (task,) = CampaignResult.load(layout.result).tasks
    assert [trial.export_sha256 for trial in task.trials] == before


def test_a_chain_goes_on_between_two_models(tmp_path: Path) -> None:
    """`ladder: true`: no trunk, and the second model begins with the first."""
    spec, storage = write_spec(tmp_path, "chain")
    without_letters(spec)
    log = tmp_path / "log.txt"
    process = start(spec, log, *CHAIN)
    wait_for("density=0.5: finished", log, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()

    second = lowrank(spec, storage, "run", *CHAIN)
    assert second.code == 0, second.output
    assert "packages density=0.5: already finished" in second.output
    assert "packages density=0.3: finished" in second.output
    assert "trunk" not in log.read_text() + second.output
    (task,) = CampaignResult.load(Layout(storage, "chain").result).tasks
    assert not task.failed
    for trial, steps in zip(task.trials, (24, 24 + 9), strict=True):
        assert trial.densities is not None
        assert trial.densities.prunable <= trial.config["density"]
        assert trial.curve[-1].step == steps
    assert task.trials[1].ladder is not None
    assert task.trials[1].ladder.shared_steps == 24

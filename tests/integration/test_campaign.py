"""What a finished campaign leaves behind: records, runs, a champion, a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.campaign_records import CampaignResult
from orchestrator.layout import Layout
from orchestrator.plan.actual import ALL_BYTES, against_plan
from orchestrator.plan.disk import KEPT_PARTS
from tests.integration.conftest import Ran, environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TASKS = ("letters", "packages")

IN_A_FRESH_PROCESS = """
import json, sys
import mlflow, pandas as pd
uri, name, column, folder, task = sys.argv[1:6]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
inner = model.unwrap_python_model().model
answer = model.predict(pd.DataFrame({column: ["Return the first line.", "A mail message"]}))
from pathlib import Path
from orchestrator.data.prepare import PreparedData
from orchestrator.spec_io import load_spec
from orchestrator.tasks import make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
spec = load_spec(sys.argv[6])
data = PreparedData.open(Path(folder))
metrics = evaluate(inner, make_task(spec.task(task), data, 0), LocalWorkers(), "test")
print(json.dumps({"metrics": metrics, "rows": len(answer), "columns": list(answer.columns),
                  "parameters": sum(p.numel() for p in inner.parameters())}))
"""


@pytest.fixture(scope="module")
def result(campaign: Ran) -> CampaignResult:
    assert campaign.code == 0, campaign.output
    return CampaignResult.load(Layout(campaign.storage, "tiny").result)


def test_every_trial_is_accounted_for(result: CampaignResult) -> None:
    for task in result.tasks:
        assert [t.target_density for t in task.trials] == [0.5]
        assert len(task.failed) == 1
        assert "density >=" in task.failed[0].reason
        assert task.failed[0].config["density"] == 0.001


def test_all_tasks_were_one_search(campaign: Ran, result: CampaignResult) -> None:
    """They share the machines; several runs of Tune at once are nothing that Ray supports."""
    assert len(list(Layout(campaign.storage, "tiny").tune.iterdir())) == 1


def test_density_is_met_from_below(result: CampaignResult) -> None:
    for task in result.tasks:
        for trial in task.trials:
            assert trial.densities is not None
            short = trial.target_density - trial.densities.prunable
            # one component of these tiny matrices is more than half a percent of them
            component = (
                max(r["in_features"] + r["out_features"] for r in trial.ranks.values())
                / task.dense.size.num_prunable
            )
            assert 0 <= short < max(0.005, component)


def test_workers_are_those_of_the_spec(result: CampaignResult) -> None:
    workers = {task.task: {m.workers for m in (task.dense, *task.trials)} for task in result.tasks}
    assert workers == {"letters": {2}, "packages": {1}}


def test_runs_are_complete_and_ended(campaign: Ran, result: CampaignResult) -> None:
    client = MlflowClient(campaign.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    statuses = sorted(run.info.status for run in runs)
    # per task: parent, dense and one trial finished, one trial failed
    assert statuses == ["FAILED"] * 2 + ["FINISHED"] * 6
    failed = [run for run in runs if run.info.status == "FAILED"]
    assert all("density >=" in run.data.tags["failure"] for run in failed)
    parents = {run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert len(parents) == 2
    for task in result.tasks:
        (trial,) = task.trials
        assert trial.mlflow_run_id is not None
        run = client.get_run(trial.mlflow_run_id)
        assert run.data.tags["mlflow.parentRunId"] in parents
        assert run.data.params["method.density"] == "0.5"
        for key in (
            "density/prunable",
            "density/parameters",
            "density/bytes",
            "density/macs",
            f"quality/test_{trial.metric.name}",
            "lagrangian/lambda_linear",
            "speed/b8x32/speedup",
            "speed/b8x32/dense_iqr_ms",
            "size/num_bytes",
        ):
            assert key in run.data.metrics, key
        assert run.data.tags["speed.threads"]
        history = client.get_metric_history(trial.mlflow_run_id, "density/expected")
        assert len({point.step for point in history}) > 5


@pytest.mark.parametrize("task_name", TASKS)
def test_champion_in_a_fresh_process(
    campaign: Ran, result: CampaignResult, task_name: str, tmp_path: Path
) -> None:
    task = next(t for t in result.tasks if t.task == task_name)
    assert task.promotion is not None
    assert task.promotion.promoted, task.promotion.sentence
    chosen = next(t for t in task.trials if t.key == task.choice.key)
    (cache,) = [
        path.parent
        for path in (campaign.storage / "cache").glob("*/data.json")
        if json.loads(path.read_text())["info"]["kind"]
        == ("classification" if task_name == "packages" else "language-modelling")
    ]
    column = "text" if task_name == "packages" else "prompt"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            IN_A_FRESH_PROCESS,
            campaign.tracking_uri,
            f"tiny-{task_name}",
            column,
            str(cache),
            task_name,
            str(campaign.spec),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment() | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    name = chosen.metric.name
    assert abs(found["metrics"][name] - chosen.test[name]) <= 1e-4
    assert found["parameters"] == chosen.size.num_parameters
    assert found["rows"] == 2
    assert chosen.size.num_bytes < task.dense.size.num_bytes


def test_sizes_are_those_of_the_files(result: CampaignResult) -> None:
    for task in result.tasks:
        for model in (task.dense, *task.trials):
            assert os.path.getsize(Path(model.export) / "model.safetensors") == model.size.num_bytes


def test_the_report_is_one_readable_file(campaign: Ran, result: CampaignResult) -> None:
    page = Layout(campaign.storage, "tiny").report.read_text(encoding="utf-8")
    for task in result.tasks:
        assert task.task in page
        assert task.choice.key is not None
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_command_again_redoes_nothing(campaign: Ran, result: CampaignResult) -> None:
    client = MlflowClient(campaign.tracking_uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    before = {r.info.run_id for r in client.search_runs([experiment.experiment_id])}
    second = campaign.again("run", "--set", "search.density=[0.5]")
    assert second.code == 0, second.output
    assert second.output.count("already finished") == 4
    assert " step " not in second.output
    after = {r.info.run_id for r in client.search_runs([experiment.experiment_id])}
    assert after == before
    versions = client.search_model_versions("name = 'tiny-letters'")
    assert [v.version for v in versions] == ["1"] or [v.version for v in versions] == [1]


def test_promote_and_rollback_by_hand(campaign: Ran, result: CampaignResult) -> None:
    promoted = campaign.again("promote", "--task", "letters")
    assert promoted.code == 0, promoted.output
    assert "is champion" in promoted.output
    nothing = campaign.again("rollback", "--task", "letters")
    assert nothing.code == 1
    assert "'previous'" in nothing.output
    refused = campaign.again(
        "promote", "--task", "letters", "--set", "promote.gates=['bytes <= 1%']"
    )
    assert refused.code == 1
    assert "bytes <= 1%" in refused.output


def test_report_again(campaign: Ran, result: CampaignResult) -> None:
    shown = campaign.again("report")
    assert shown.code == 0, shown.output
    assert "champion" in shown.output


def test_what_was_counted_before_it_is_what_it_left(campaign: Ran, result: CampaignResult) -> None:
    """A campaign that nobody planned has a plan of counts: its bytes can be compared."""
    comparison = against_plan(Layout(campaign.storage, "tiny"), result, local=True)
    assert comparison is not None
    rows = {row.part: row for row in comparison.bytes}
    assert set(rows) == {*KEPT_PARTS, ALL_BYTES}
    # tiny models weigh little beside the guessed parts of a report
    assert abs(rows[ALL_BYTES].error) < 0.25
    assert not comparison.seconds
    # one trial of each task fails by intention
    assert [note for note in comparison.notes if "planned" in note]

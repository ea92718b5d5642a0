"""What the end of a campaign writes to MLflow, in a real store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from orchestrator.conclusion import _publish
from orchestrator.front.assess import noisy_front
from orchestrator.layout import Layout
from orchestrator.tracking import Tracking
from tests.orchestrator.front.test_assess import repeated
from tests.orchestrator.record_factory import make_campaign
from tests.orchestrator.test_report import task_result


def test_runs_say_how_sure_the_front_is(store: str, tmp_path: Path) -> None:
    tracking = Tracking(store, "small-fleet", tmp_path / "artifacts")
    parent = tracking.task_run("small-fleet", "docs-lm", "", {})
    trials = [
        replace(trial, mlflow_run_id=tracking.model_run(trial.key, parent, trial.key, {}, {}))
        for trial in repeated(0.004)[:6]
    ]
    task = task_result(trials=trials, require=())
    front = noisy_front(trials, task.dense, task.data, draws=50)
    assert front is not None
    campaign = make_campaign([replace(task, noisy_front=front)])
    layout = Layout(tmp_path, "small-fleet")
    layout.create()
    for path in (layout.report, layout.result, layout.card("docs-lm")):
        path.write_text("{}")
    # of a site only these are asked
    _publish(
        SimpleNamespace(layout=layout, tracking=tracking),
        [SimpleNamespace(run_id=parent)],
        campaign,
    )  # type: ignore[arg-type, list-item]

    client = MlflowClient(tracking_uri=store)
    told = client.get_run(parent).data
    volume = front.volumes[-1].volume
    assert told.metrics["front/hypervolume"] == pytest.approx(volume.value)
    assert told.metrics["front/hypervolume_low"] == pytest.approx(volume.low)
    assert told.metrics["front/seed_noise"] == pytest.approx(0.004)
    assert told.tags["front.reference"] == "quality drop 0.1, parameters 1, latency 1"
    kept = {each.path for each in client.list_artifacts(parent)}
    assert {"report.html", "result.json", "card-docs-lm.md"} <= kept
    for trial in trials:
        assert trial.mlflow_run_id is not None
        found = client.get_run(trial.mlflow_run_id).data.metrics["front/probability"]
        assert found == front.probability_of(trial.key)

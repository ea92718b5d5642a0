"""Earlier campaigns as a real store has them, and what a campaign that begins with them keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.campaign import Campaign
from orchestrator.campaign_state import TaskState
from orchestrator.earlier import Readings, task_digest
from orchestrator.errors import TrackingError
from orchestrator.method_search import TrialPlan
from orchestrator.records import Metric
from orchestrator.search import plan_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.tracking.earlier_runs import EarlierRuns, WarmStartError
from orchestrator.tracking.reading import RunReader
from orchestrator.warming import read_earlier
from tests.orchestrator.data.tasks import prose, text_files
from tests.orchestrator.record_factory import ACCURACY, BITS, make_trial
from tests.orchestrator.small import docs_task

SEARCH: dict[str, Any] = {
    "density": [0.5, 0.3],
    "trials_per_density": 2,
    "penalty_lr": {"log_uniform": [0.01, 1]},
}


def spec_with(storage: Path, name: str, **search: Any) -> CampaignSpec:
    texts = text_files(storage / "texts", train=prose(60), validation=prose(20, 1))
    task = docs_task("lm", steps=10) | {"data": texts.model_dump(), "context": 16}
    return CampaignSpec.model_validate(
        {
            "name": name,
            "storage": str(storage),
            "tasks": [task],
            "method": {"kind": "flop-l0", "steps": 25},
            "search": SEARCH | search,
        }
    )


def trial_run(
    tracking: Tracking, plan: TrialPlan, data: str = "data", metric: Metric = BITS, **run: Any
) -> str:
    """The run of a finished trial, as its campaign leaves it; better at high penalties."""
    params = {"task": "lm", "data_hash": data, "seed": plan.seed}
    tags = {"kind": run.pop("kind", "trial")}
    run_id = tracking.model_run(plan.key, "parent", plan.name, params, tags)
    writer = RunWriter(tracking.uri, run_id)
    if run.pop("record", True):
        quality = 2.0 - 0.1 * (plan.method.penalty_lr or 0.0)
        record = replace(
            make_trial(key=plan.key, task="lm"),
            metric=metric,
            validation={metric.name: quality},
            config=plan.method.model_dump(mode="json"),
            method_name=plan.method_name,
        )
        writer.record_file(record)
    writer.end(run.pop("status", "FINISHED"))
    return run_id


def run_earlier(storage: Path, store: str, name: str, data: str = "data") -> dict[str, TrialPlan]:
    """A campaign's runs; returns its plans by the ids of theirs."""
    spec, tracking = spec_with(storage, name), Tracking(store, name, storage / "mlflow-artifacts")
    tracking.task_run(name, "lm", dump_spec(spec, redact=True), {})
    plans = plan_trials(spec, spec.tasks[0], data)
    return {trial_run(tracking, plan, data): plan for plan in plans}


class TestReading:
    def test_finished_trials_come_with_what_they_came_to(self, store: str, tmp_path: Path):
        plans = run_earlier(tmp_path, store, "first")
        second = run_earlier(tmp_path, store, "second")
        found = EarlierRuns(store, ["second", "first"], "own").of("data", BITS.name)
        assert [each.campaign for each in found.trials] == ["second"] * 4 + ["first"] * 4
        assert {each.run_id for each in found.trials} == set(plans) | set(second)
        digest = task_digest(spec_with(tmp_path, "own").tasks[0])
        for each in found.trials[4:]:
            method = plans[each.run_id].method
            assert each.config == method.model_dump(mode="json")
            assert each.method_name == "flop-l0"
            assert each.loss == pytest.approx(2.0 - 0.1 * (method.penalty_lr or 0.0))
            assert (each.excess, each.task_digest) == (0.0, digest)
        assert found.left_out == {}

    def test_what_does_not_fit_is_counted(self, store: str, tmp_path: Path):
        tracking = Tracking(store, "first", tmp_path / "artifacts")
        spec = spec_with(tmp_path, "first", trials_per_density=4)
        plans = iter(plan_trials(spec, spec.tasks[0], "data"))
        (tracking.task_run("first", "lm", "tasks: [", {}), trial_run(tracking, next(plans)))
        trial_run(tracking, next(plans), data="other")
        trial_run(tracking, next(plans), status="FAILED")
        trial_run(tracking, next(plans), record=False)
        trial_run(tracking, next(plans), metric=ACCURACY)
        trial_run(tracking, next(plans), kind="trunk")
        found = EarlierRuns(store, ["first"], "own").of("data", BITS.name)
        assert [each.task_digest for each in found.trials] == [""], "of a spec that nobody can read"
        assert found.left_out == Counter(
            [
                "of other data",
                "that did not finish",
                "without a record that can be read",
                "by accuracy, not bits_per_character",
            ]
        )
        higher = EarlierRuns(store, ["first"], "own").of("data", ACCURACY.name).trials
        assert [each.loss < 0 for each in higher] == [True], "the smaller the better"

    def test_campaigns_that_are_not_there(self, store: str, tmp_path: Path):
        for name in ("first", "second", "own", "gone"):
            tracking = Tracking(store, name, tmp_path)
        MlflowClient(tracking_uri=store).delete_experiment(tracking.experiment_id)
        for name in ("fourth", "gone"):
            with pytest.raises(WarmStartError) as caught:
                EarlierRuns(store, ["first", name], "own")
            message = str(caught.value)
            assert message.startswith(f"search.warm_start: '{name}' must be a campaign in sqlite:")
            assert "it has first, second. What is in another store" in message
            assert caught.value.exit_code == 2
        with pytest.raises(TrackingError, match="cannot be reached"):
            EarlierRuns("http://127.0.0.1:9", ["first"], "own")


class TestSaying:
    def said(self, spec: CampaignSpec, store: str, readings: Readings, data: str) -> list[str]:
        lines: list[str] = []
        metrics = {"lm": BITS.name}
        read_earlier(spec, {"lm": data}, metrics, readings, store, lines.append)
        return lines

    def test_what_was_found_and_what_is_used(self, store: str, tmp_path: Path):
        run_earlier(tmp_path, store, "first")
        readings = Readings()
        spec = spec_with(tmp_path, "own", warm_start=["first"], penalty_lr=[0.5])
        first, used = self.said(spec, store, readings, "data")
        assert first == "lm: warm start from first: 4 finished trials"
        assert used == (
            "lm: flop-l0: 0 of 4 earlier trials have settings that it searches; left out: "
            "4 with penalty_lr outside [0.5]"
        )
        # what has been read is not read again
        spec = spec_with(tmp_path, "own", warm_start=["first"])
        used = "lm: flop-l0: 4 of 4 earlier trials have settings that it searches"
        assert self.said(spec, "sqlite:////nowhere/at/all", readings, "data") == [used]
        methods = {"near": {}, "plain": {"kind": "low-rank", "fields": {}}}
        spec = spec_with(tmp_path, "own", warm_start=["first"], methods=methods)
        assert self.said(spec, store, readings, "data") == [
            "lm: near: no earlier trial is of its name and kind; there are flop-l0 (flop-l0)"
        ]

    def test_nothing_fits(self, store: str, tmp_path: Path):
        run_earlier(tmp_path, store, "first")
        Tracking(store, "empty", tmp_path)
        readings = Readings()
        (line,) = self.said(spec_with(tmp_path, "own", warm_start=["first"]), store, readings, "x")
        assert line == (
            "lm: warm start from first: none of their trials fits, so the search begins from "
            "nothing; left out: 4 of other data"
        )
        (line,) = self.said(spec_with(tmp_path, "own", warm_start=["empty"]), store, readings, "x")
        assert line.endswith("they have no trials, so the search begins from nothing")


def prepared(spec: CampaignSpec, said: list[str]) -> tuple[Campaign, TaskState]:
    """A campaign as it stands when its trials begin."""
    campaign = Campaign(spec, said.append)
    campaign.layout.create()
    campaign.tracking = campaign._open_tracking()
    (state,) = campaign._prepare()
    return campaign, state


def test_a_campaign_keeps_what_it_has_taken(store: str, tmp_path: Path):
    """Its trials stay the same when the earlier campaign is gone, for itself and for who reads
    its results from MLflow alone."""
    said: list[str] = []
    _, first = prepared(spec_with(tmp_path, "first"), said)
    data = first.data.content_hash
    earlier = run_earlier(tmp_path, store, "first", data)
    spec = spec_with(tmp_path, "own", warm_start=["first"])
    campaign, state = prepared(spec, said)
    assert {each.run_id for each in state.earlier} == set(earlier)
    plans = plan_trials(spec, state.task, data, earlier=state.earlier)
    assert len(plans) == len(earlier) == 4
    for density in (0.5, 0.3):
        plan = next(each for each in plans if each.method.density == density)
        assert plan.source is not None
        rates = [
            p.method.penalty_lr or 0.0 for p in earlier.values() if p.method.density == density
        ]
        assert plan.method.penalty_lr == max(rates)
    found = MlflowClient(tracking_uri=store).get_experiment_by_name("first")
    MlflowClient(tracking_uri=store).delete_experiment(found.experiment_id)
    _, again = prepared(spec, said)
    assert plan_trials(spec, again.task, data, earlier=again.earlier) == plans
    reader = RunReader(store, "own")
    (run,) = [run for run in reader.runs() if run.key == "task:lm"]
    assert reader.earlier(run).of(spec, state.task, data) == state.earlier
    # another list of campaigns has not been read, and one of them is gone
    with pytest.raises(WarmStartError, match="'first' must be a campaign"):
        prepared(spec_with(tmp_path, "own", warm_start=["first", "second"]), said)
    assert Readings(campaign.layout.earlier).of(spec, state.task, data) == state.earlier

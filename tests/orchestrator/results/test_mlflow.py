"""Results as they are read from a real MLflow store."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.campaign_state import Site, TaskState
from orchestrator.errors import TrackingError
from orchestrator.layout import Layout
from orchestrator.measuring_stage import MeasuringStage
from orchestrator.progress import Progress
from orchestrator.records import ModelRecord
from orchestrator.spec import CampaignSpec
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.tracking.reading import RunReader
from tests.orchestrator.results.pages import (
    BITS,
    as_int8,
    read,
    section,
    tables,
    write,
)
from tests.orchestrator.results_factory import (
    SETTING,
    FakeReader,
    make_record,
    make_spec,
    make_speed,
    store_campaign,
)


def site_of(spec: CampaignSpec, tracking: Tracking, said: list[str]) -> Site:
    return Site(
        spec=spec,
        layout=Layout.of(spec.storage, spec.name),
        tracking=tracking,
        progress=Progress(say=said.append),
        available={},
    )


class TestMlflow:
    """MLflow alone is enough: the campaign's folder is not read, and may be gone."""

    @pytest.fixture
    def tracking(self, store: str, tmp_path: Path) -> Tracking:
        return Tracking(store, "compare", tmp_path / "mlflow-artifacts")

    def test_a_record_is_read_back_equal(self, tracking: Tracking):
        spec = make_spec()
        fake = FakeReader(spec)
        record = make_record(fake.plans()[0], fake.dense)
        run = tracking.model_run(record.key, "p", "trial", {"task": "letters"}, {"kind": "trial"})
        RunWriter(tracking.uri, run).record(replace(record, speed=[]))
        RunWriter(tracking.uri, run).record_file(record)
        (logged,) = RunReader(tracking.uri, "compare").runs()
        assert (logged.key, logged.status, logged.run_id) == (record.key, "RUNNING", run)
        assert RunReader(tracking.uri, "compare").record(logged) == record

    def test_a_page_from_a_store(self, no_plots: None, tracking: Tracking, tmp_path: Path):
        methods = {"uniform": {"kind": "low-rank"}, "adaptive": {"learning_rate": [0.1, 0.2]}}
        search = {"density": [0.25], "repeats": 2, "trials_per_density": 2, "methods": methods}
        spec = make_spec(search=search)
        fake = FakeReader(spec)
        store_campaign(fake, tracking)
        (tmp_path / "compare").mkdir()
        shutil.rmtree(tmp_path / "compare")
        results = read(RunReader(tracking.uri, "compare"), spec)
        assert results.finished == {plan.key: fake.records[plan.key] for plan in fake.plans()}
        assert results.dense == fake.records[fake.dense.key]
        assert (results.missing, results.to_come, results.left_out) == ([], 0, 0)
        assert results.recorded_digest == spec.digest()
        assert results.result.data == SETTING["data"]
        assert results.hardware == SETTING["hardware"]
        text = write(results, tmp_path)
        assert str(tmp_path) not in text
        assert [r["method"] for r in tables(section(text, "Quality"))[0]] == ["uniform", "adaptive"]

    def test_the_digest_is_of_the_spec_that_ran_last(self, tracking: Tracking):
        for digest in ("one", "two"):
            tracking.task_run("compare", "letters", "", {"spec_hash": digest})
        (run,) = RunReader(tracking.uri, "compare").runs()
        assert run.tags["spec_hash"] == "two"

    def test_a_measured_record_is_logged_again(
        self, tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        spec = make_spec(storage=str(tmp_path))
        fake = FakeReader(spec)
        record = replace(make_record(fake.plans()[0], fake.dense), speed=[])
        run = tracking.model_run(record.key, "p", "trial", {}, {})
        record = replace(record, mlflow_run_id=run)
        RunWriter(tracking.uri, run).record(record)
        rows = [make_speed(8, 0.5, random.Random(0))]
        monkeypatch.setattr("orchestrator.machines.run_alone", lambda *args, **more: rows)
        data: Any = SimpleNamespace(folder=tmp_path)
        state = TaskState(
            task=spec.tasks[0], data=data, run_id="p", dense=fake.dense, trials=[record]
        )
        MeasuringStage(site_of(spec, tracking, [])).speed(state)
        reader = RunReader(tracking.uri, "compare")
        assert reader.record(reader.runs()[0]) == replace(record, speed=rows) == state.trials[0]

    def test_integers_are_measured_once_where_they_are_asked_for(
        self, tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        spec = make_spec(storage=str(tmp_path), measure={"int8": True})
        fake = FakeReader(spec)
        trial = make_record(fake.plans()[0], fake.dense)
        records = [
            replace(record, mlflow_run_id=tracking.model_run(record.key, "p", "n", {}, {}))
            for record in (fake.dense, trial)
        ]
        answers = ["no kernels", as_int8(trial)]
        monkeypatch.setattr("orchestrator.machines.run_alone", lambda *args, **more: answers.pop(0))
        data: Any = SimpleNamespace(folder=tmp_path)
        state = TaskState(
            task=spec.tasks[0], data=data, run_id="p", dense=records[0], trials=[records[1]]
        )
        said: list[str] = []
        without = make_spec(storage=str(tmp_path))
        MeasuringStage(site_of(without, tracking, said)).int8(state)
        assert (said, len(answers)) == ([], 2)
        site = site_of(spec, tracking, said)
        MeasuringStage(site).int8(state)
        assert "no 8-bit integers: no kernels" in said[1]
        assert state.dense == records[0]
        (grown,) = state.trials
        assert grown == replace(records[1], int8=as_int8(trial))
        reader = RunReader(tracking.uri, "compare")
        run = next(run for run in reader.runs() if run.key == trial.key)
        assert reader.record(run) == grown == ModelRecord.load(site.layout.record(trial.key))
        metrics = tracking.client.get_run(str(grown.mlflow_run_id)).data.metrics
        assert metrics[f"int8/test_{BITS}"] == grown.int8.test[BITS]
        assert metrics["int8/num_bytes"] == grown.int8.num_bytes
        assert metrics["int8_speed/b8x128/speedup"] == grown.int8.speed[0].speedup
        # the next run asks for the dense one again, and no more
        answers.append("no kernels")
        MeasuringStage(site).int8(state)
        assert answers == []

    def test_a_store_that_is_not_there_is_not_made(self, tmp_path: Path):
        with pytest.raises(TrackingError, match="nothing is recorded in sqlite"):
            RunReader(f"sqlite:///{tmp_path}/none.db", "compare")
        assert list(tmp_path.iterdir()) == []

    def test_no_such_experiment(self, store: str):
        with pytest.raises(TrackingError, match="has no experiment 'compare'"):
            RunReader(store, "compare")

    @pytest.mark.parametrize("text", ["{", '{"key": 1}', "[]"])
    def test_a_record_in_another_form_is_none(self, tracking: Tracking, text: str):
        run = tracking.model_run("k", "p", "n", {}, {})
        reader = RunReader(tracking.uri, "compare")
        assert reader.record(reader.runs()[0]) is None
        assert reader.setting(reader.runs()[0]) == {}
        RunWriter(tracking.uri, run).client.log_text(run, text, "record.json")
        assert reader.record(reader.runs()[0]) is None

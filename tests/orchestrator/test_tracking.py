"""What is written to MLflow, read back from a real store."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.errors import TrackingError
from orchestrator.records import CurvePoint, ModelRecord
from orchestrator.tracking import RunWriter, Tracking, default_tracking_uri
from orchestrator.tracking.journal import Stamped
from orchestrator.tracking.reading import RunReader
from tests.orchestrator.record_factory import make_speed
from tests.orchestrator.small import Family


@pytest.fixture
def tracking(store: str, tmp_path: Path) -> Tracking:
    return Tracking(store, "campaign", tmp_path / "artifacts")


@pytest.fixture
def writer(tracking: Tracking) -> RunWriter:
    run = tracking.model_run("key", tracking.task_run("campaign", "lm", "", {}), "trial", {}, {})
    return RunWriter(tracking.uri, run)


def reader(uri: str) -> MlflowClient:
    """Another client, as another process would have."""
    return MlflowClient(tracking_uri=uri)


def text_of(uri: str, run: str, name: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return Path(reader(uri).download_artifacts(run, name, str(folder))).read_text()


def _noted(asked: list[str], name: str, call: Any) -> Any:
    """The call, noting its name each time."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        asked.append(name)
        return call(*args, **kwargs)

    return noted


class TestOpening:
    def test_an_experiment_is_made_once(self, store: str, tmp_path: Path):
        first, again = (Tracking(store, "campaign", tmp_path / "artifacts") for _ in range(2))
        other = Tracking(store, "other", tmp_path / "artifacts")
        assert first.experiment_id == again.experiment_id != other.experiment_id
        found = reader(store).get_experiment(first.experiment_id)
        assert found.artifact_location == (tmp_path / "artifacts" / "campaign").as_uri()

    def test_a_deleted_experiment_is_explained(self, store: str, tmp_path: Path):
        tracking = Tracking(store, "campaign", tmp_path)
        reader(store).delete_experiment(tracking.experiment_id)
        with pytest.raises(TrackingError, match=r"'campaign' is deleted in sqlite.*another name"):
            Tracking(store, "campaign", tmp_path)

    def test_a_server_that_does_not_answer(self, tmp_path: Path):
        start = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            Tracking("http://user:secret@127.0.0.1:9", "campaign", tmp_path)
        assert time.monotonic() - start < 30, "MLflow's default is to try for minutes"
        assert "tracking.uri: http://***@127.0.0.1:9 cannot be reached" in str(caught.value)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("uri", ["sqlite:///{}/store.db", "nonsense://{}", "postgresql://{}"])
    def test_what_is_no_store_is_named(
        self, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "file").write_text("")
        uri, slept = uri.format(tmp_path / "file"), list[float]()
        monkeypatch.setattr(time, "sleep", slept.append)
        with pytest.raises(TrackingError, match=f"^tracking.uri: {uri} cannot be reached"):
            Tracking(uri, "campaign", tmp_path)
        if uri.startswith("postgresql"):
            assert not slept, "MLflow asks a database ten times, in a hundred seconds"

    def test_the_default_is_a_file_under_the_storage(self, tmp_path: Path):
        assert default_tracking_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"


class TestRuns:
    def test_a_run_is_found_again_by_its_key(self, tracking: Tracking):
        parent = tracking.task_run("campaign", "lm", "one: 1", {"kind": "x"})
        child = tracking.model_run("k", parent, "name", {"a": {"b": 1, "c": "x"}, "d": None}, {})
        assert tracking.task_run("campaign", "lm", "one: 1", {"kind": "x"}) == parent
        assert tracking.task_run("campaign", "other", "", {}) not in (parent, child)
        again = Tracking(tracking.uri, "campaign", Path("unused"))
        assert again.model_run("k", parent, "name", {"a": {"b": 1, "c": "x"}}, {}) == child
        assert again.model_run("k2", parent, "name", {}, {}) != child
        run = reader(tracking.uri).get_run(child)
        assert run.data.params == {"a.b": "1", "a.c": "x", "d": "None"}
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert run.data.tags["lowrank.key"] == "k"
        assert run.info.run_name == "name"

    def test_a_run_of_an_earlier_version_goes_on(self, tracking: Tracking):
        """MLflow refuses changed params: a campaign would stop at the first such trial."""
        run = tracking.model_run("k", "p", "n", {"config": "old", "same": 1}, {})
        fields = {"config": "new", "same": 1, "added": True}
        many = {f"more{number}": number for number in range(150)}
        assert tracking.model_run("k", "p", "n", fields | many, {}) == run
        found = reader(tracking.uri).get_run(run)
        assert found.info.status == "RUNNING"
        shown = {k: v for k, v in found.data.params.items() if not k.startswith("more")}
        assert shown == {"config": "old", "same": "1", "added": "True"}
        assert len(found.data.params) == 153

    def test_the_task_run_holds_the_latest_spec(self, tracking: Tracking, tmp_path: Path):
        run = tracking.task_run("campaign", "lm", "seed: 1", {})
        tracking.task_run("campaign", "lm", "seed: 2", {})
        assert text_of(tracking.uri, run, "spec.yaml", tmp_path / "out") == "seed: 2"
        assert reader(tracking.uri).get_run(run).data.tags["campaign"] == "campaign"

    def test_experiments_do_not_see_each_other(self, tracking: Tracking, tmp_path: Path):
        other = Tracking(tracking.uri, "other", tmp_path)
        run = tracking.model_run("k", "p", "n", {}, {})
        assert other.model_run("k", "p", "n", {}, {}) != run

    def test_finished_means_that_the_run_ended_well(self, tracking: Tracking):
        assert not tracking.finished("k")
        run = tracking.model_run("k", "p", "n", {}, {})
        assert not tracking.finished("k")
        for status, done in (("FAILED", False), ("KILLED", False), ("FINISHED", True)):
            RunWriter(tracking.uri, run).end(status)
            assert tracking.finished("k") == done
        # a run that is taken up again is not finished any more
        tracking.model_run("k", "p", "n", {}, {})
        assert not tracking.finished("k")

    def test_a_thousand_keys_are_one_question(
        self, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
    ):
        """A search for each of them takes a server longer, the more runs it has."""
        made = {key: tracking.model_run(key, "p", key, {}, {}) for key in "abcdefg"}
        RunWriter(tracking.uri, made["c"]).end("FINISHED")
        monkeypatch.setattr("orchestrator.tracking.store.PAGE", 3)
        again = Tracking(tracking.uri, "campaign", Path("unused"))
        asked: list[str] = []
        for name in ("search_runs", "get_run", "update_run", "create_run", "log_batch"):
            monkeypatch.setattr(
                again.client, name, _noted(asked, name, getattr(again.client, name)), raising=False
            )
        assert again.finished("c")
        assert not again.finished("new")
        assert asked == ["search_runs"] * 3, "seven runs on pages of three"
        asked.clear()
        assert again.finished("c")
        assert not again.finished("new")
        assert asked == []
        # what another process may have ended is looked at
        RunWriter(tracking.uri, made["d"]).end("FINISHED")
        assert again.finished("d")
        assert asked == ["get_run"]
        asked.clear()
        again.model_run("new", "p", "new", {"one": 1}, {})
        assert asked == ["create_run", "log_batch"]
        assert again.model_run("a", "p", "a", {}, {}) == made["a"]
        again.model_run("c", "p", "c", {}, {})
        assert not again.finished("c"), "it is taken up again"

    def test_of_two_runs_with_one_key_the_latest_counts(self, tracking: Tracking):
        tracking.model_run("k", "p", "n", {}, {})
        client = reader(tracking.uri)
        second = client.create_run(
            tracking.experiment_id, start_time=2**42, tags={"lowrank.key": "k"}
        )
        again = Tracking(tracking.uri, "campaign", Path("unused"))
        assert again.model_run("k", "p", "n", {}, {}) == second.info.run_id

    def test_a_sweep_ends_more_than_a_page(
        self, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("orchestrator.tracking.store.PAGE", 2)
        for key in "abcde":
            tracking.model_run(key, "p", key, {}, {})
        assert tracking.sweep("KILLED", "gone") == 5
        assert tracking.sweep("KILLED", "gone") == 0

    def test_a_reader_goes_through_all_pages(
        self, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
    ):
        keys = [f"key{number}" for number in range(5)]
        for key in keys:
            tracking.model_run(key, "p", "trial", {}, {})
        monkeypatch.setattr("orchestrator.tracking.reading.PAGE", 2)
        found = RunReader(tracking.uri, "campaign").runs()
        assert [run.key for run in found] == keys

    def test_a_store_that_is_gone_is_one_sentence(self, tracking: Tracking):
        reader = RunReader(tracking.uri, "campaign")
        Path(tracking.uri.removeprefix("sqlite:///")).write_bytes(b"no database" * 1000)
        with pytest.raises(TrackingError, match=r"sqlite:///.*not a database"):
            reader.runs()

    def test_a_sweep_ends_what_still_runs_and_nothing_else(self, tracking: Tracking):
        runs = {
            name: tracking.model_run(name, "p", name, {}, {})
            for name in ("running", "done", "failed", "also")
        }
        RunWriter(tracking.uri, runs["done"]).end("FINISHED")
        RunWriter(tracking.uri, runs["failed"]).end("FAILED", "its own reason")
        assert tracking.sweep("KILLED", "the driver is gone") == 2
        found = {name: reader(tracking.uri).get_run(run) for name, run in runs.items()}
        assert {name: run.info.status for name, run in found.items()} == {
            "running": "KILLED",
            "also": "KILLED",
            "done": "FINISHED",
            "failed": "FAILED",
        }
        assert found["running"].data.tags["failure"] == "the driver is gone"
        assert found["failed"].data.tags["failure"] == "its own reason"
        assert "failure" not in found["done"].data.tags
        assert tracking.sweep("KILLED", "again") == 0


class TestWriting:
    def test_a_point_becomes_metrics_over_steps(self, writer: RunWriter):
        points = [
            CurvePoint(
                step=3,
                phase="anneal",
                seconds=1.5,
                train_loss=2.0,
                validation=0.5,
                learning_rate=0.1,
                expected_density=0.9,
                target_density=0.8,
                lambda_linear=0.01,
                lambda_quadratic=0.02,
                undecided=0.25,
                extras={"score": 7.0},
            ),
            CurvePoint(step=5, phase="anneal", seconds=2.5),
        ]
        writer.points([Stamped(1000 + point.step, point) for point in points], "accuracy")
        client = reader(writer.uri)
        assert {
            name: [(m.step, m.value) for m in client.get_metric_history(writer.run_id, name)]
            for name in client.get_run(writer.run_id).data.metrics
        } == {
            "loss/train": [(3, 2.0)],
            "quality/validation_accuracy": [(3, 0.5)],
            "optimizer/learning_rate": [(3, 0.1)],
            "density/expected": [(3, 0.9)],
            "density/undecided_gates": [(3, 0.25)],
            "extras/score": [(3, 7.0)],
            "density/target": [(3, 0.8)],
            "lagrangian/lambda_linear": [(3, 0.01)],
            "lagrangian/lambda_quadratic": [(3, 0.02)],
            "time/train_s": [(3, 1.5), (5, 2.5)],
        }

    def test_more_points_than_a_request_may_hold(
        self, writer: RunWriter, monkeypatch: pytest.MonkeyPatch
    ):
        """A thousand metrics is a server's limit, which a database does not check."""
        sizes: list[int] = []
        log_batch = writer.client.log_batch

        def counted(run: str, metrics: list[Any]) -> None:
            sizes.append(len(metrics))
            log_batch(run, metrics=metrics)

        monkeypatch.setattr(writer.client, "log_batch", counted, raising=False)
        points = [
            CurvePoint(step=step, phase="dense", seconds=step, train_loss=1.0, learning_rate=0.1)
            for step in range(700)
        ]
        writer.points([Stamped(1, point) for point in points], "perplexity_token")
        assert sum(sizes) == 2100
        assert max(sizes) <= 1000
        client = reader(writer.uri)
        for name in ("loss/train", "time/train_s", "optimizer/learning_rate"):
            history = client.get_metric_history(writer.run_id, name)
            assert [metric.step for metric in history] == list(range(700))

    def test_the_same_points_again_are_there_once(self, writer: RunWriter):
        """An answer that was lost, or a process that died before it had noted one."""
        points = [
            Stamped(1000 + step, CurvePoint(step=step, phase="dense", seconds=step, train_loss=2.0))
            for step in range(1, 6)
        ]
        writer.points(points[:3], "accuracy")
        writer.points(points, "accuracy")
        writer.points(points, "accuracy")
        history = reader(writer.uri).get_metric_history(writer.run_id, "loss/train")
        assert [(m.step, m.timestamp) for m in history] == [(s, 1000 + s) for s in range(1, 6)]

    def test_what_is_not_finite_becomes_a_tag(self, writer: RunWriter):
        writer.metrics({"a": 1.5, "b": math.nan, "c": math.inf})
        data = reader(writer.uri).get_run(writer.run_id).data
        assert data.metrics == {"a": 1.5}
        assert (data.tags["b"], data.tags["c"]) == ("nan", "inf")

    def test_a_record_is_written_whole(self, writer: RunWriter, either: Family, tmp_path: Path):
        record = either.trials[0]
        writer.record(record)
        text = text_of(writer.uri, writer.run_id, "record.json", tmp_path / "out")
        assert ModelRecord.from_json(text) == record
        metrics = reader(writer.uri).get_run(writer.run_id).data.metrics
        name = record.metric.name
        assert metrics[f"quality/test_{name}"] == record.test[name]
        assert metrics[f"quality/validation_{name}_final"] == record.quality
        assert metrics["size/num_parameters"] == record.size.num_parameters
        assert metrics["density/prunable"] == record.densities.prunable
        assert metrics["projection/expected_density"] == record.projection["expected_density"]

    def test_figures_and_tags_are_one_request(
        self, writer: RunWriter, either: Family, monkeypatch: pytest.MonkeyPatch
    ):
        asked: list[str] = []
        for name in ("log_batch", "log_metric", "set_tag"):
            method = _noted(asked, name, getattr(writer.client, name))
            monkeypatch.setattr(writer.client, name, method, raising=False)
        writer.record(either.trials[0])
        writer.speed([make_speed(1, 1.1, 6.0), make_speed(32, 1.5, 80.0)])
        writer.tags({"a": "1", "b": "2"})
        assert asked == ["log_batch"] * 3
        tags = reader(writer.uri).get_run(writer.run_id).data.tags
        assert (tags["a"], tags["b"]) == ("1", "2")

    def test_speed_is_written_with_its_fingerprint(self, writer: RunWriter):
        writer.speed([make_speed(1, 1.1, 6.0), make_speed(32, 1.5, 80.0)])
        data = reader(writer.uri).get_run(writer.run_id).data
        assert data.metrics["speed/b1x128/speedup"] == 1.1
        assert data.metrics["speed/b32x128/dense_ms"] == 80.0
        assert data.metrics["speed/b32x128/compressed_ms"] == pytest.approx(80 / 1.5)
        assert data.tags["speed.device"] == "cpu"
        assert data.tags["speed.threads"] == "2"

    def test_the_end_is_written_with_its_reason(self, writer: RunWriter):
        writer.end("FAILED", "x" * 9000)
        run = reader(writer.uri).get_run(writer.run_id)
        assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "x" * 5000)

    def test_a_file_is_kept(self, writer: RunWriter, tmp_path: Path):
        (tmp_path / "front.txt").write_text("front")
        writer.artifact(tmp_path / "front.txt")
        assert text_of(writer.uri, writer.run_id, "front.txt", tmp_path / "out") == "front"

    def test_logging_a_model_leaves_the_run_running(
        self, writer: RunWriter, lm: Family, tmp_path: Path
    ):
        """A run that MLflow closed would pass for a finished trial if the process died now."""
        import mlflow

        record = lm.trials[0]
        uri = writer.model(record, lm.task.kind)
        assert uri.startswith("models:/m-")
        assert reader(writer.uri).get_run(writer.run_id).info.status == "RUNNING"
        assert mlflow.active_run() is None
        logged = reader(writer.uri).get_logged_model(uri.removeprefix("models:/"))
        assert logged.source_run_id == writer.run_id
        assert logged.params["size.num_bytes"] == str(record.size.num_bytes)
        assert logged.params["weights_sha256"] == record.export_sha256
        assert Path(logged.artifact_location.removeprefix("file://")).is_relative_to(
            tmp_path / "artifacts"
        )

    def test_a_model_is_logged_once_and_again_when_its_weights_are_others(
        self, writer: RunWriter, lm: Family
    ):
        """A process that died after logging it must not leave a second one behind."""
        first = writer.model(lm.trials[0], lm.task.kind)
        assert writer.model(lm.trials[0], lm.task.kind) == first
        other = writer.model(replace(lm.trials[0], export_sha256="0" * 64), lm.task.kind)
        assert other != first
        outputs = reader(writer.uri).get_run(writer.run_id).outputs.model_outputs
        assert {f"models:/{each.model_id}" for each in outputs} == {first, other}

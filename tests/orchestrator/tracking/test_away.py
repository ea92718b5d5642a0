"""A real MLflow server dies while a model is trained, and comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.job import Job
from orchestrator.launch import Launch
from orchestrator.recording import record_model, trained
from orchestrator.records import ModelRecord
from orchestrator.snapshot import SnapshotStore
from orchestrator.tracking import RunWriter, Tracking, TrackingAway
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.patience import Patience
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import Family
from tests.orchestrator.tracking.away import history, losses, make_launch, train
from tests.orchestrator.tracking.server import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def tracking(server: Server, tmp_path: Path) -> Tracking:
    return Tracking(server.uri, tmp_path.name, tmp_path / "artifacts")


@pytest.fixture
def launch(tracking: Tracking, lm: Family, tmp_path: Path) -> Launch:
    return make_launch(tracking, lm, tmp_path / "storage")


def test_training_goes_on_and_nothing_is_lost(server: Server, launch: Launch):
    undisturbed = run_job(Job(**launch.job), LocalWorkers())
    evaluations = [p.step for p in undisturbed.curve if p.validation is not None]
    record = train(launch, {evaluations[1]: server.kill})
    assert record is not None
    assert [replace(p, seconds=0) for p in record.curve] == [
        replace(p, seconds=0) for p in undisturbed.curve
    ]
    on_disk = Journal(launch.layout.journal(launch.key)).points
    assert [each.point for each in on_disk] == record.curve

    # a disk that was full kept the last point out, which the record has
    path = launch.layout.journal(launch.key)
    path.write_text("\n".join(path.read_text().split("\n")[:-2]) + "\n")
    assert [each.point for each in Journal(path).points] == record.curve[:-1]

    # a worker of it hung: that is told by whoever writes the run
    note = launch.layout.hung(launch.key) / "worker0.txt"
    note.parent.mkdir(parents=True)
    note.write_text('Timeout (0:30:00)!\nThread 1:\n  File "/x/steps.py", line 7 in run_job\n')
    # who trained it does not wait for ever, and leaves it to who can
    hasty = RunWriter(launch.tracking_uri, launch.run_id, Patience(launch.tracking_uri, 1))
    with pytest.raises(TrackingAway):
        record_model(launch, record, hasty)
    found = trained(launch)
    assert found is not None

    lines: list[str] = []
    threading.Timer(8, server.start).start()
    writer = RunWriter(
        launch.tracking_uri, launch.run_id, Patience(launch.tracking_uri, 120, lines.append)
    )
    recorded = record_model(launch, found, writer)
    assert "does not answer" in lines[0]
    assert "answers again" in lines[-1]
    assert history(launch, "loss/train") == losses(record)
    run = MlflowClient(launch.tracking_uri).get_run(launch.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["size/num_parameters"] == record.size.num_parameters
    assert run.data.tags["hung"].startswith("worker0 in run_job (steps.py:7)")
    assert recorded.model_uri is not None
    assert ModelRecord.load(launch.layout.record(launch.key)) == recorded
    assert not launch.layout.journal(launch.key).exists()

    # once more, as after a death between the last two writes
    again = record_model(launch, recorded, writer)
    assert again.model_uri == recorded.model_uri
    assert history(launch, "loss/train") == losses(record)


def test_a_training_that_goes_on_tells_each_step_once(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """What came after its last state is computed again, with the same figures."""
    monkeypatch.setattr("orchestrator.resume.INTERVAL_S", 0)
    launch = replace(launch, job=launch.job | {"snapshots": str(tmp_path / "states")})
    saved: list[int] = []
    save = SnapshotStore.save

    def once(store: SnapshotStore, step: int, snapshot: Any) -> None:
        if not saved:
            save(store, step, snapshot)
            saved.append(step)

    monkeypatch.setattr(SnapshotStore, "save", once)
    steps = int(launch.job["method"]["steps"])
    assert train(launch, {}, die_after=steps - 1) is None
    before = history(launch, "loss/train")
    assert before[-1][0] > saved[0], "it told of steps that its last state does not hold"
    record = train(launch, {})
    assert record is not None
    record_model(launch, record, RunWriter(launch.tracking_uri, launch.run_id))
    assert history(launch, "loss/train") == losses(record)

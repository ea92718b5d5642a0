"""A real MLflow server on a real PostgreSQL, which dies while a trial writes, and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.job import Job
from orchestrator.recording import record_model, trained
from orchestrator.records import ModelRecord
from orchestrator.tracking import RunWriter, Tracking
from orchestrator.tracking.patience import Patience
from orchestrator.tracking.reading import RunReader
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import Family
from tests.orchestrator.tracking.away import history, losses, make_launch, train
from tests.orchestrator.tracking.postgres import Postgres, binaries
from tests.orchestrator.tracking.server import Server

pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed"),
]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    database = Postgres()
    try:
        database.start()
        yield database
    finally:
        database.remove()


@pytest.fixture(scope="module")
def server(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), database.uri)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def tracking(server: Server, tmp_path: Path) -> Tracking:
    return Tracking(server.uri, tmp_path.name, tmp_path / "artifacts")


def test_what_is_written_is_read_back(
    database: Postgres, tracking: Tracking, lm: Family, tmp_path: Path
):
    parent = tracking.task_run("campaign", "lm", "seed: 1", {"kind": "x"})
    params = {"a": {"b": 1}, "long": "x" * 5000} | {f"p{n}": n for n in range(150)}
    run = tracking.model_run("k", parent, "name", params, {"density": "0.5"})
    writer = tracking.writer(run)
    writer.record(lm.trials[0])
    writer.metrics({"odd": float("nan")}, {"note": "kept"})
    writer.end("FINISHED")
    lost = tracking.model_run("lost", parent, "name", {}, {})
    again = Tracking(tracking.uri, tmp_path.name, tmp_path)
    assert again.sweep("KILLED", "its driver is gone") == 2, "the task's own and the lost one"
    assert again.finished("k")
    assert not again.finished("lost")
    assert again.model_run("lost", parent, "name", {}, {}) == lost

    reader = RunReader(tracking.uri, tmp_path.name)
    found = {each.key: each for each in reader.runs()}
    assert set(found) == {"task:lm", "k", "lost"}
    assert found["k"].params["p149"] == "149"
    assert found["k"].tags["odd"] == "nan"
    assert found["k"].tags["note"] == "kept"
    assert reader.record(found["k"]) == lm.trials[0]
    rows = database.query(f"SELECT count(*) FROM params WHERE run_uuid = '{run}'")
    assert int(rows) == 152


def test_the_database_dies_in_the_middle_of_a_trial(
    database: Postgres,
    tracking: Tracking,
    lm: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Once while it trains and once while its run is written; MLflow's server lives on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # our patience, not MLflow's
    launch = make_launch(tracking, lm, tmp_path / "storage")
    undisturbed = run_job(Job(**launch.job), LocalWorkers())
    evaluations = [p.step for p in undisturbed.curve if p.validation is not None]
    record = train(launch, {evaluations[1]: database.kill})
    assert record is not None
    assert losses(record) == losses(undisturbed)

    lines: list[str] = []
    found = trained(launch)
    assert found is not None
    patience = Patience(launch.tracking_uri, 120, lines.append)
    writer = RunWriter(launch.tracking_uri, launch.run_id, patience)
    comes_and_goes = threading.Thread(target=_disturb, args=[database, launch.run_id])
    comes_and_goes.start()
    recorded = record_model(launch, found, writer)
    comes_and_goes.join()
    assert "does not answer" in lines[0]
    assert "answers again" in lines[-1]

    assert history(launch, "loss/train") == losses(record)
    client = MlflowClient(launch.tracking_uri)
    run = client.get_run(launch.run_id)
    assert run.info.status == "FINISHED"
    assert ModelRecord.load(launch.layout.record(launch.key)) == recorded
    models = client.search_logged_models([run.info.experiment_id])
    ready = [model for model in models if str(model.status) == "READY"]
    assert [f"models:/{model.model_id}" for model in ready] == [recorded.model_uri]
    table = "SELECT count(*) FROM metrics WHERE key = 'size/num_parameters'"
    assert int(database.query(f"{table} AND run_uuid = '{launch.run_id}'")) == 1


def _disturb(database: Postgres, run_id: str) -> None:
    """Back after a while, and away once more when the first part of the run is written."""
    time.sleep(3)
    database.start()
    asked = f"SELECT count(*) FROM metrics WHERE run_uuid = '{run_id}' AND key = 'loss/train'"
    deadline = time.monotonic() + 60
    while int(database.query(asked)) < 12 and time.monotonic() < deadline:
        time.sleep(0.02)
    database.kill()
    time.sleep(3)
    database.start()

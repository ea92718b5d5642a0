"""A store that is away, and one that refuses."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from sqlalchemy.exc import IntegrityError, OperationalError

from orchestrator.errors import RegistryError
from orchestrator.tracking import RunWriter, Tracking, TrackingAway
from orchestrator.tracking import patience as module
from orchestrator.tracking.patience import Patience, PatientClient, is_away


def caused_by(cause: BaseException) -> Exception:
    """As MLflow raises: its own error, while it handles another's."""
    try:
        try:
            raise cause
        except BaseException:
            raise MlflowException("API request failed")  # noqa: B904
    except MlflowException as error:
        return error


AWAY = [
    requests.ConnectionError("refused"),
    requests.ReadTimeout("slow"),
    requests.exceptions.RetryError("too many 503 error responses"),
    ConnectionResetError("reset"),
    TimeoutError("slow"),
    OperationalError("select", None, Exception("database is locked")),
]
REFUSED = [
    requests.exceptions.InvalidURL("no host"),
    requests.exceptions.MissingSchema("no scheme"),
    IntegrityError("insert", None, Exception("duplicate")),
    ValueError("a bad value"),
    FileNotFoundError("gone"),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda each: type(each).__name__)
def test_what_means_that_nobody_answered(error: Exception):
    assert is_away(error)
    assert is_away(caused_by(error))
    assert is_away(TrackingAway("waited"))
    assert is_away(MlflowException("busy", error_code=TEMPORARILY_UNAVAILABLE))


@pytest.mark.parametrize("error", REFUSED, ids=lambda each: type(each).__name__)
def test_what_means_that_it_was_refused(error: Exception):
    assert not is_away(error)
    assert not is_away(caused_by(error))


class Flaky:
    """Away for so many calls."""

    def __init__(self, times: int) -> None:
        self.left, self.calls = times, 0

    def get(self, value: int) -> int:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise ConnectionError("refused")
        return value

    create_run = get


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)


class TestAsking:
    def test_it_is_asked_again_until_it_answers(self, quick: None):
        lines: list[str] = []
        store = Flaky(4)
        patience = Patience("http://user:secret@host", 60, lines.append)
        assert patience.ask(store.get, 7) == 7
        assert store.calls == 5
        begun, over = lines
        assert "http://***@host does not answer; it is asked again for 1 minutes (refused)" in begun
        assert over == "MLflow at http://***@host answers again"

    def test_a_lock_that_is_gone_at_once_is_not_worth_a_line(self, quick: None):
        lines: list[str] = []
        assert Patience("uri", 60, lines.append).ask(Flaky(1).get, 7) == 7
        assert lines == []

    def test_after_the_time_it_is_said_to_be_away(self, quick: None):
        store = Flaky(10**6)
        began = time.monotonic()
        with pytest.raises(TrackingAway, match=r"^tracking.uri: http://\*\*\*@host cannot be reac"):
            Patience("http://user:secret@host", 0.2).ask(store.get, 7)
        assert time.monotonic() - began >= 0.2
        assert store.calls > 3

    def test_without_patience_it_is_asked_once(self):
        store = Flaky(1)
        with pytest.raises(TrackingAway):
            Patience("uri").ask(store.get, 7)
        assert store.calls == 1

    def test_a_refusal_is_passed_on_at_once(self):
        def refuse() -> None:
            raise RegistryError("no")

        with pytest.raises(RegistryError, match=r"^no$"):
            Patience("uri", 60).ask(refuse)

    def test_a_client_asks_again_for_all_but_what_it_would_make_twice(self, quick: None):
        store = Flaky(2)
        client = PatientClient(store, Patience("uri", 60))
        assert client.get(3) == 3
        store.left = 1
        with pytest.raises(ConnectionError):
            client.create_run(3)
        assert client.left == 0


def test_a_database_that_another_process_holds_is_waited_for(store: str, tmp_path: Path):
    """SQLite's own wait is five seconds; a busy machine takes longer."""
    tracking = Tracking(store, "campaign", tmp_path)
    run = tracking.model_run("k", "p", "n", {}, {})
    writer = RunWriter(store, run)
    holder = sqlite3.connect(store.removeprefix("sqlite:///"), check_same_thread=False)
    holder.execute("begin exclusive")
    threading.Timer(8, holder.rollback).start()
    began = time.monotonic()
    writer.metrics({"a": 1.0})
    assert time.monotonic() - began > 5
    assert MlflowClient(store).get_run(run).data.metrics == {"a": 1.0}
    holder.close()


def test_a_run_whose_making_was_not_answered_is_not_made_twice(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tracking = Tracking(store, "campaign", tmp_path)
    make, lost = tracking.client.create_run, []

    def create_run(*args: object, **kwargs: object) -> object:
        made = make(*args, **kwargs)
        if not lost:
            lost.append(made)
            raise requests.ReadTimeout("the answer was lost")
        return made

    monkeypatch.setattr(tracking.client, "create_run", create_run, raising=False)
    run = tracking.model_run("k", "p", "n", {}, {})
    assert run == lost[0].info.run_id
    assert len(MlflowClient(store).search_runs([tracking.experiment_id])) == 1

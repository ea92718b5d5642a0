"""A signal stops the driver between two requests, and not within one."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import interrupts
from orchestrator.interrupts import heard, interruptible, one_piece
from orchestrator.tracking import Tracking


@pytest.fixture(autouse=True)
def asking() -> Iterator[None]:
    # a test run in a shell's background inherits an ignored SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with interruptible():
        yield
    signal.signal(signal.SIGINT, before)


def ask(signum: signal.Signals) -> None:
    signal.raise_signal(signum)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
class TestSignal:
    def test_outside_a_request_it_is_raised_at_once(self, asked: signal.Signals):
        with pytest.raises(KeyboardInterrupt):
            ask(asked)

    def test_within_one_it_is_raised_at_the_end(self, asked: signal.Signals):
        done = []

        def request() -> None:
            with one_piece():
                with one_piece():
                    ask(asked)
                    done.append("inner")
                done.append("outer")

        with pytest.raises(KeyboardInterrupt):
            request()
        assert done == ["inner", "outer"]
        with one_piece():
            pass  # and once only

    def test_the_second_does_not_wait(self, asked: signal.Signals):
        done = []

        def request() -> None:
            with one_piece():
                ask(asked)
                done.append("first")
                ask(asked)
                done.append("second")

        with pytest.raises(KeyboardInterrupt):
            request()
        assert done == ["first"]

    def test_it_is_raised_after_a_request_that_fails(self, asked: signal.Signals):
        def request() -> None:
            with one_piece():
                ask(asked)
                raise ConnectionError("away")

        with pytest.raises(KeyboardInterrupt):
            request()

    def test_what_was_ignored_stays_ignored(self, asked: signal.Signals):
        before = signal.signal(asked, signal.SIG_IGN)
        with interruptible():
            ask(asked)
        signal.signal(asked, before)

    def test_afterwards_it_means_what_it_meant_before(self, asked: signal.Signals):
        before = signal.getsignal(asked)
        with interruptible():
            pass
        assert signal.getsignal(asked) is before


class Deaf:
    """Python swallows what is raised while it is deleted."""

    def __del__(self) -> None:
        ask(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_was_swallowed_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "AGAIN_S", 0.1)

    def work() -> None:
        with heard():
            listener = Deaf()
            del listener
            time.sleep(30)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - began < 20
    time.sleep(0.3)  # and no more, once it was heard


def test_what_cleans_up_after_a_signal_is_not_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "AGAIN_S", 0.05)
    done = []

    def work() -> None:
        try:
            with heard():
                ask(signal.SIGTERM)
        finally:
            time.sleep(0.3)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["cleaned up"]


def test_a_request_of_another_thread_does_not_hold_up_the_main_one() -> None:
    begun, over = threading.Event(), threading.Event()

    def request() -> None:
        with one_piece():
            begun.set()
            over.wait(30)

    thread = threading.Thread(target=request)
    thread.start()
    begun.wait(30)
    with pytest.raises(KeyboardInterrupt):
        ask(signal.SIGTERM)
    over.set()
    thread.join(30)


def test_runs_can_be_ended_whenever_the_signal_came(tmp_path: Path, store: str) -> None:
    moments = random.Random(3)
    signal.signal(signal.SIGALRM, lambda *_: ask(signal.SIGTERM))
    looking = Tracking(store, "stopped", tmp_path)
    interrupted = 0
    for index in range(20):
        tracking = Tracking(store, "stopped", tmp_path)
        try:
            with heard():
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.08))
                task = tracking.task_run("stopped", f"task-{index}", "", {})
                for model in range(30):
                    tracking.model_run(f"{index}-{model}", task, "name", {"density": 0.5}, {})
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        tracking.sweep("KILLED", "interrupted")
        runs = looking.client.search_runs([looking.experiment_id])
        assert {run.info.status for run in runs} <= {"KILLED"}
    assert interrupted >= 15

"""Lines for people, and the time that is left, by a clock that the test sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.progress import Progress, clock, tune_callback


class Clock:
    now = 1000.0


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr("time.monotonic", lambda: Clock.now)
    Clock.now = 1000.0
    return Clock


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def progress(at: type[Clock], lines: list[str]) -> Progress:
    return Progress(say=lines.append, total_models=4, started=at.now)


def report(step: int, total: int = 100, **more: Any) -> dict[str, Any]:
    return {"step": step, "total_steps": total, "phase": "anneal"} | more


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")],
)
def test_the_clock_in_words(seconds: float, text: str):
    assert clock(seconds) == text


def test_a_line_begins_with_the_time_since_the_start(
    progress: Progress, lines: list[str], at: type[Clock]
):
    at.now += 62
    progress.line("reading data")
    assert lines == ["[1:02] reading data"]


def test_a_step_shows_what_it_has(progress: Progress, lines: list[str]):
    progress.step(
        "lm 0.5",
        report(
            10, expected_density=0.91234, target_density=0.9, train_loss=2.3456, validation=1.23456
        ),
    )
    progress.step("lm dense", report(5) | {"phase": "dense"})
    assert lines == [
        "[0:00] lm 0.5: step 10/100 anneal | density 0.912 → 0.900 | loss 2.346 "
        "| validation 1.2346",
        "[0:00] lm dense: step 5/100 dense",
    ]


@pytest.mark.parametrize("metrics", [{}, {"step": 3}, {"total_steps": 100}, report(3, 0)])
def test_reports_without_steps_are_silent(
    progress: Progress, lines: list[str], metrics: dict[str, Any]
):
    """The last report of a training carries only its files."""
    progress.step("lm", metrics)
    assert lines == []


def test_what_is_left_follows_from_what_is_done(
    progress: Progress, lines: list[str], at: type[Clock]
):
    at.now += 10
    progress.step("a", report(20))
    assert "left" not in lines[-1], "a fifth of one model is too little to tell"
    at.now += 10
    progress.step("a", report(50))  # half a model in 20 s, 3.5 to go
    assert lines[-1].endswith(" | about 2:20 left")
    at.now += 20
    progress.done("a", "finished")  # one in 40 s, 3 to go
    assert lines[-1] == "[0:40] a: finished (1/4) | about 2:00 left"


def test_models_side_by_side_share_the_time(progress: Progress, lines: list[str], at: type[Clock]):
    at.now += 30
    progress.step("a", report(25))
    progress.step("b", report(75))  # one model's work in 30 s, 3 to go
    assert lines[-1].endswith("about 1:30 left")


def test_a_restarted_model_counts_once(progress: Progress, lines: list[str], at: type[Clock]):
    at.now += 60
    progress.step("a", report(90))
    progress.step("a", report(50))  # a lost worker: back to the start and on
    assert lines[-1].endswith("about 7:00 left")


def test_reused_models_do_not_distort_the_estimate(
    progress: Progress, lines: list[str], at: type[Clock]
):
    """Two came from an earlier run in no time; the other two take as long as they take."""
    for name in ("a", "b"):
        progress.done(name, "already finished", reused=True)
    assert lines[-1] == "[0:00] b: already finished (2/4)"
    at.now += 30
    progress.step("c", report(50))  # 1.5 to go, a minute each
    assert lines[-1].endswith("about 1:30 left")
    at.now += 30
    progress.done("c", "finished")
    assert lines[-1].endswith("(3/4) | about 1:00 left")


def test_at_the_end_nothing_is_left(progress: Progress, lines: list[str], at: type[Clock]):
    for name in "abcd":
        at.now += 10
        progress.done(name, "finished")
    assert lines[-1] == "[0:40] d: finished (4/4)"


def test_a_model_without_a_validation_in_its_last_step(progress: Progress, lines: list[str]):
    progress.step("a", report(0))
    assert lines == ["[0:00] a: step 0/100 anneal"]


class TestCallback:
    """What Ray Tune calls; a trial is only asked for its configuration."""

    @pytest.fixture
    def trial(self) -> Any:
        return SimpleNamespace(
            config={"launch": SimpleNamespace(key="k1", then=[])},
            last_result={"ended": 1},
            get_pickled_error=lambda: None,
            get_error=lambda: None,
        )

    @pytest.fixture
    def callback(self, progress: Progress) -> Any:
        return tune_callback(progress, {"k1": "lm density=0.5"})

    def test_steps_and_the_end(self, callback: Any, trial: Any, lines: list[str]):
        callback.on_trial_result(1, [], trial, report(10))
        callback.on_trial_result(2, [], trial, {"ended": 1, "failure": None, "quality": 1.5})
        assert lines == [
            "[0:00] lm density=0.5: step 10/100 anneal",
            "[0:00] lm density=0.5: finished, validation 1.5000 (1/4) | about 0:00 left",
        ]

    def test_failures_count_as_done(
        self, callback: Any, trial: Any, lines: list[str], progress: Progress
    ):
        callback.on_trial_result(1, [], trial, {"ended": 1, "failure": "loss is nan"})
        assert lines[0].startswith("[0:00] lm density=0.5: FAILED, loss is nan (1/4)")
        callback.on_trial_error(2, [], trial)
        assert "FAILED, its process ended unexpectedly (2/4)" in lines[1]

    @pytest.mark.parametrize(
        ("error", "text", "reason"),
        [
            (RuntimeError("first\nlast"), None, "RuntimeError: last"),
            (None, "Traceback\n  ...\nOSError: full", "an error: OSError: full"),
            (None, None, "its process ended unexpectedly"),
        ],
    )
    def test_what_a_process_died_of_is_told(
        self, progress: Progress, trial: Any, error: Any, text: Any, reason: str
    ):
        told: list[Any] = []
        callback = tune_callback(
            progress, {"k1": "lm"}, over=lambda launch, report, death: told.append((report, death))
        )
        callback.on_trial_complete(1, [], trial)
        trial.get_pickled_error, trial.get_error = lambda: error, lambda: text
        callback.on_trial_error(2, [], trial)
        assert told == [({"ended": 1}, None), ({"ended": 1}, reason)]

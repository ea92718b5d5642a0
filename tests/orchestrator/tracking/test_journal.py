"""The curve of a training: on disk first, each step once, delivered when the store answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.records import CurvePoint
from orchestrator.tracking import TrackingAway
from orchestrator.tracking import journal as module
from orchestrator.tracking.journal import CurveSink, Journal, Stamped


def point(step: int, loss: float = 1.0) -> CurvePoint:
    return CurvePoint(step=step, phase="hold", seconds=step, train_loss=loss, extras={"a": 2.0})


def steps(points: list[Stamped]) -> list[int]:
    return [each.point.step for each in points]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "key.jsonl"


class TestJournal:
    def test_another_process_reads_the_same(self, path: Path):
        journal = Journal(path)
        journal.add([point(1), point(2)])
        journal.add([point(3)])
        again = Journal(path)
        assert again.points == journal.points
        assert [each.point for each in again.points] == [point(1), point(2), point(3)]

    def test_a_step_is_written_down_once(self, path: Path):
        """A training that goes on from its last state computes what came after it again."""
        Journal(path).add([point(1), point(2), point(3)])
        again = Journal(path)
        assert steps(again.add([point(2), point(3), point(4)])) == [4]
        assert steps(again.add([point(4)])) == []
        assert steps(Journal(path).points) == [1, 2, 3, 4]

    def test_after_a_divergence_the_same_step_is_another_training(self, path: Path):
        """At half the rate, with figures of its own."""
        Journal(path).add([replace(point(1), learning_rate=0.2)])
        again = Journal(path)
        assert steps(again.add([replace(point(1, 3.0), learning_rate=0.1)])) == [1]
        assert [each.point.train_loss for each in Journal(path).points] == [1.0, 3.0]

    def test_a_line_that_a_killed_process_left_unfinished(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ):
        Journal(path).add([point(1), point(2)])
        text = path.read_text()
        path.write_text(text[:-25])
        again = Journal(path)
        assert steps(again.points) == [1]
        assert "a line that is no point is left out" in caplog.text
        again.add([point(2), point(3)])
        assert steps(Journal(path).points) == [1, 2, 3]

    @pytest.mark.parametrize(
        "line",
        [
            "[]",
            "{}",
            '{"at_ms": 1, "point": {"x": 1}}',
            '{"at_ms": 1e999, "point": {}}',
            "[" * 100_000,
            "\x00\xff",
        ],
    )
    def test_what_is_no_point_is_left_out(self, path: Path, line: str):
        Journal(path).add([point(1)])
        with path.open("a") as file:
            file.write(line + "\n")
        assert steps(Journal(path).points) == [1]

    def test_a_curve_that_cannot_be_written_down_does_not_stop_a_training(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        (tmp_path / "file").write_text("")
        journal = Journal(tmp_path / "file" / "key.jsonl")
        assert steps(journal.add([point(1)])) == []
        assert "the curve cannot be written down" in caplog.text

    def test_what_is_not_written_down_is_not_told(self, tmp_path: Path):
        """Or the process that goes on would tell it a second time, under another time."""
        (tmp_path / "folder").write_text("")
        journal = Journal(tmp_path / "folder" / "key.jsonl")
        told: list[Stamped] = []
        sink = CurveSink(journal, told.extend)
        sink([point(1)])
        sink([point(2)])
        assert told == []
        assert steps(Journal(journal.path).add([point(1)])) == []
        (tmp_path / "folder").unlink()
        sink([point(3)])
        assert steps(told) == steps(Journal(journal.path).points) == [1, 2, 3]
        assert told[0].at_ms <= told[2].at_ms

    def test_what_waited_is_written_down_at_the_end(self, tmp_path: Path):
        (tmp_path / "folder").write_text("")
        journal = Journal(tmp_path / "folder" / "key.jsonl")
        journal.add([point(1)])
        (tmp_path / "folder").unlink()
        journal.settle()
        assert steps(Journal(journal.path).points) == steps(journal.points) == [1]

    def test_a_line_that_was_written_twice_counts_once(self, path: Path):
        """As by a disk that was full in the middle of an attempt, which is made again."""
        Journal(path).add([point(1), point(2)])
        path.write_text(path.read_text() * 2)
        assert steps(Journal(path).points) == [1, 2]

    def test_it_goes_when_it_is_delivered(self, path: Path):
        journal = Journal(path)
        journal.add([point(1)])
        journal.remove()
        journal.remove()
        assert Journal(path).points == []

    def test_a_line_is_plain_json(self, path: Path):
        Journal(path).add([point(7, 0.5)])
        (line,) = filter(None, path.read_text().splitlines())
        assert json.loads(line)["point"]["train_loss"] == 0.5


class Store:
    """Takes points, or is away."""

    def __init__(self) -> None:
        self.taken: list[Stamped] = []
        self.away = False
        self.asked = 0

    def send(self, points: list[Stamped]) -> None:
        self.asked += 1
        if self.away:
            raise TrackingAway("nobody answers")
        self.taken += points


class TestSink:
    def test_points_go_on_to_the_store(self, path: Path):
        store = Store()
        sink = CurveSink(Journal(path), store.send)
        sink([point(1)])
        sink([point(2), point(3)])
        assert steps(store.taken) == [1, 2, 3]
        assert steps(Journal(path).points) == [1, 2, 3]

    def test_they_wait_for_a_store_that_is_away(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        now = [100.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        store = Store()
        sink = CurveSink(Journal(path), store.send)
        store.away = True
        asked = []
        for second in range(40):
            now[0] = 100.0 + second
            sink([point(second)])
            if store.asked > len(asked):
                asked.append(second)
        assert asked == [0, 5, 15, 35], "the pause doubles"
        assert steps(Journal(path).points) == list(range(40))
        store.away = False
        now[0] = 1000.0
        sink([point(40)])
        assert steps(store.taken) == list(range(41))
        sink([point(41)])
        assert steps(store.taken) == list(range(42))

    def test_a_store_that_hangs_costs_little(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        now = [0.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

        def hang(points: list[Stamped]) -> None:
            now[0] += 20.0
            raise TrackingAway("nobody answers")

        sink = CurveSink(Journal(path), hang)
        spent = 0.0
        for step in range(3600):
            before = now[0]
            sink([point(step)])
            spent += now[0] - before
            now[0] += 1.0
        assert spent / now[0] < 0.07

    def test_what_an_earlier_attempt_wrote_down_is_delivered_again(self, path: Path):
        """It may have died before the store had it; with the same times it is there once."""
        first = Store()
        CurveSink(Journal(path), first.send)([point(1), point(2)])
        second = Store()
        CurveSink(Journal(path), second.send)([point(2), point(3)])
        assert steps(second.taken) == [1, 2, 3]
        assert second.taken[:2] == first.taken

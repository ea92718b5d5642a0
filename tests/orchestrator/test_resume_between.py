"""What a training heeds between two validations: the clock, a notice, a wish to stop."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import resume
from orchestrator.errors import StoppedError
from orchestrator.records import CurvePoint
from orchestrator.snapshot import SnapshotStore
from orchestrator.stopping.signals import Stop
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.orchestrator import test_resume
from tests.orchestrator.small import train_to
from tests.orchestrator.test_resume import Stopped, job_of, same

# a state at every validation; dense references with dropout
save_always, parents = test_resume.save_always, test_resume.parents


class Watched(LocalWorkers):
    """Hears of what is told between validations, and dies of it.

    Args:
        at: Which of these it dies of, from 1.
    """

    def __init__(self, at: int) -> None:
        super().__init__(self._hear)
        self._at = at
        self.told: list[dict[str, Any]] = []

    def _hear(self, progress: dict[str, Any], checkpoint: Path | None) -> None:
        if progress.get("between"):
            self.told.append(progress)
            if len(self.told) == self._at:
                raise Stopped


@pytest.mark.parametrize("kind", ["dense", "adaptive", "low-rank"])
def test_validations_far_apart_cost_no_more_than_minutes(
    kind: str, parents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A state is saved between them as well, and how far it is gets told, each point once."""
    monkeypatch.setattr(resume, "INTERVAL_S", 1e9)
    monkeypatch.setattr(resume, "BETWEEN_S", 0.0)
    monkeypatch.setattr(resume, "LOOK_EVERY_S", 0.0)
    job = job_of(parents["lm"], kind)
    straight = train_to(tmp_path / "straight", job)
    validations = {point.step for point in straight.curve if point.validation is not None}
    for at in (1, 7):
        snapshots = tmp_path / f"snapshots{at}"
        again = replace(job, snapshots=str(snapshots))
        workers = Watched(at)
        with pytest.raises(Stopped):
            run_job(again, workers)
        steps = [progress["step"] for progress in workers.told]
        assert steps == sorted(set(steps) - validations)
        assert all(progress["train_loss"] and progress["total_steps"] for progress in workers.told)
        assert max(SnapshotStore(snapshots).steps()) == steps[-1]
        same(train_to(tmp_path / f"resumed{at}", again), straight)


def test_a_short_training_is_not_told_of_between_validations(
    parents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resume, "LOOK_EVERY_S", 0.0)
    job = replace(job_of(parents["lm"], "low-rank"), snapshots=str(tmp_path / "snapshots"))
    workers = Watched(1)
    run_job(job, workers)
    assert workers.told == []


class Warned(LocalWorkers):
    """A machine that is given notice, and taken away at the next validation.

    Args:
        at: Which look finds the notice, from 1.
    """

    def __init__(self, at: int) -> None:
        super().__init__(self._die)
        self._at, self._looks = at, 0

    def ending(self) -> bool:
        self._looks += 1
        return self._looks == self._at

    def _die(self, progress: dict[str, Any], checkpoint: Path | None) -> None:
        if self._looks >= self._at:
            raise Stopped


@pytest.mark.parametrize("kind", ["dense", "adaptive", "flop-l0", "agp", "low-rank"])
def test_a_machine_that_is_taken_away_with_notice_costs_no_step(
    kind: str, parents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There may be no validation within the notice: the state of any step will do."""
    monkeypatch.setattr(resume, "INTERVAL_S", 1e9)
    monkeypatch.setattr(resume, "LOOK_EVERY_S", 0.0)
    job = job_of(parents["lm"], kind)
    straight = train_to(tmp_path / "straight", job)
    validations = {point.step for point in straight.curve if point.validation is not None}
    for look in (1, 5, 8, 17):
        if look > len(straight.curve):
            continue
        snapshots = tmp_path / f"snapshots{look}"
        again = replace(job, snapshots=str(snapshots))
        with pytest.raises(Stopped):
            run_job(again, Warned(look))
        (saved,) = SnapshotStore(snapshots).steps()
        assert saved not in validations
        same(train_to(tmp_path / f"resumed{look}", again), straight)


class Unwanted(LocalWorkers):
    """A training that others are ahead of.

    Args:
        at: Which question finds that out, from 1.
    """

    def __init__(self, at: int) -> None:
        self.reports: list[dict[str, Any]] = []
        super().__init__(lambda progress, checkpoint: self.reports.append(progress))
        self._at, self._asked = at, 0

    def stop_asked(self) -> Stop | None:
        self._asked += 1
        return Stop(rung=0.4, reason="behind") if self._asked >= self._at else None


@pytest.mark.parametrize("kind", ["adaptive", "agp", "low-rank", "from-scratch"])
def test_a_training_stops_when_it_is_asked_to(
    kind: str, parents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = replace(job_of(parents["lm"], kind), snapshots=str(tmp_path / "snapshots"))
    sent: list[CurvePoint] = []
    workers = Unwanted(at=6)
    with pytest.raises(StoppedError, match="behind") as stopped:
        run_job(job, workers, sent.extend)
    steps = [report["step"] for report in workers.reports]
    assert 0 < stopped.value.step < workers.reports[0]["total_steps"]
    assert steps[-1] <= stopped.value.step
    assert stopped.value.facts == {"rung": 0.4, "reason": "behind", "step": stopped.value.step}
    again = pickle.loads(pickle.dumps(stopped.value))
    assert again.facts == stopped.value.facts
    # nothing of the curve is lost
    assert max(point.step for point in sent) <= stopped.value.step
    assert {report["step"] for report in workers.reports} <= {point.step for point in sent}
    fixed = [report for report in workers.reports if report["phase"] == "finetune"]
    assert all(0 < report["realized_density"] <= 0.3 for report in fixed)


def test_who_is_through_is_not_stopped(parents: dict[str, Any], tmp_path: Path):
    job = replace(job_of(parents["lm"], "low-rank"), snapshots=str(tmp_path / "snapshots"))

    class AtTheEnd(Unwanted):
        def stop_asked(self) -> Stop | None:
            last = self.reports and self.reports[-1]["step"] == self.reports[-1]["total_steps"]
            return Stop(rung=0.4, reason="behind") if last else None

    assert run_job(job, AtTheEnd(1)).quality > 0


@pytest.mark.parametrize(("step_s", "expected"), [(0.01, 500), (0.9, 6), (30.0, 1)])
def test_looks_come_every_few_seconds_whatever_a_step_takes(
    step_s: float, expected: int, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    looks, found = resume._Looks(), []
    for step in range(1, 5000):
        now[0] += step_s
        if looks.due(step):
            found.append(step)
            looks.next(looks.pause())
    between = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert between[-1] == pytest.approx(expected, rel=0.02)
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(between))


# --------------------------------------------------------------------------- two workers

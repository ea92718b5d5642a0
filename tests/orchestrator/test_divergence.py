"""A training that diverges goes back once, at a lower rate, and fails if it diverges again."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from orchestrator import resume
from orchestrator.errors import DivergedError
from orchestrator.records import ModelRecord
from orchestrator.steps import Steps
from orchestrator.train_loop import LOWER_RATE
from tests.orchestrator.small import Family, make_job, method, train_to

KINDS = ["adaptive", "low-rank"]


@pytest.fixture(autouse=True)
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state at every validation."""
    monkeypatch.setattr(resume, "INTERVAL_S", 0.0)
    monkeypatch.setattr(resume, "LEAST_APART", 0.0)


class Blasts:
    """Losses that are no numbers, each once, after so many steps in all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *after: int) -> None:
        self.steps, self.left = 0, list(after)
        take = Steps.take

        def taken(steps: Steps, step: int) -> Tensor:
            self.steps += 1
            loss = take(steps, step)
            if self.left and self.steps >= self.left[0]:
                self.left.pop(0)
                return loss * math.nan
            return loss

        monkeypatch.setattr(Steps, "take", taken)


def job_of(lm: Family, kind: str, snapshots: Path | None) -> Any:
    gated = {"gated_fraction": 0.5} if kind == "adaptive" else {}
    how = method(kind=kind, density=0.5, steps=24, **gated)
    job = make_job(lm.task, lm.data, how, lm.dense.export)
    return replace(job, snapshots=str(snapshots) if snapshots else None)


def rates(record: ModelRecord) -> dict[int, float]:
    return {p.step: p.learning_rate for p in record.curve if p.learning_rate is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_its_last_state_at_half_the_rate(
    kind: str,
    lm: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    straight = train_to(tmp_path / "straight", job_of(lm, kind, None))
    assert straight.rate_factor == 1
    every = lm.task.evaluate_every
    assert every == 6
    Blasts(monkeypatch, 20)
    record = train_to(tmp_path / "again", job_of(lm, kind, tmp_path / "states"))
    assert record.rate_factor == LOWER_RATE == 0.5
    assert "training diverged; once more from the last state, at 0.5 of the rate" in caplog.text
    before, now = rates(straight), rates(record)
    assert before.keys() == now.keys()
    for step, rate in now.items():
        assert rate == pytest.approx(before[step] * (0.5 if step > 18 else 1)), step
    kept = [replace(point, seconds=0) for point in record.curve if point.step <= 18]
    assert kept == [replace(p, seconds=0) for p in straight.curve if p.step <= 18]
    assert all(math.isfinite(p.train_loss) for p in record.curve if p.train_loss is not None)
    assert record.curve[-1].train_loss != straight.curve[-1].train_loss


def test_without_a_state_it_begins_again(
    lm: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    straight = train_to(tmp_path / "straight", job_of(lm, "adaptive", None))
    Blasts(monkeypatch, 20)
    record = train_to(tmp_path / "again", job_of(lm, "adaptive", None))
    assert record.rate_factor == 0.5
    before = rates(straight)
    assert rates(record) == pytest.approx({step: rate / 2 for step, rate in before.items()})


@pytest.mark.parametrize("states", [True, False])
def test_a_second_divergence_is_the_end(
    states: bool, lm: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Blasts(monkeypatch, 20, 22)
    job = job_of(lm, "adaptive", tmp_path / "states" if states else None)
    with pytest.raises(DivergedError, match=r"is nan near .* diverged, as before, now at 0.5 of"):
        train_to(tmp_path / "again", job)


def test_a_process_that_dies_after_it_goes_on_at_the_lower_rate(
    lm: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    Blasts(monkeypatch, 14)
    straight = train_to(tmp_path / "straight", job_of(lm, "adaptive", tmp_path / "states-a"))
    assert straight.rate_factor == 0.5

    class Dead(Exception):
        """As by SIGKILL."""

    blasts = Blasts(monkeypatch, 14)
    take = Steps.take

    def die(steps: Steps, step: int) -> Tensor:
        if blasts.steps == 22:
            raise Dead
        return take(steps, step)

    job = job_of(lm, "adaptive", tmp_path / "states-b")
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "take", die)
        with pytest.raises(Dead):
            train_to(tmp_path / "dead", job)
    caplog.set_level(logging.INFO)
    caplog.clear()
    record = train_to(tmp_path / "again", job)
    assert "goes on after step 18" in caplog.text
    assert record.rate_factor == 0.5
    assert record.export_sha256 == straight.export_sha256
    assert rates(record) == rates(straight)

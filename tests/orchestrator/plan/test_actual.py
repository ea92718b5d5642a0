"""A campaign against its plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign_records import CampaignResult, Choice
from orchestrator.layout import Layout
from orchestrator.plan import disk
from orchestrator.plan.actual import (
    ALL_BYTES,
    ALL_TRAINING,
    WALL,
    against_plan,
    compare,
    gated_seconds,
    training_seconds,
)
from orchestrator.plan.disk import TaskBytes
from orchestrator.plan.figures import Range
from orchestrator.plan.hours import AFTER, BEFORE, DENSE_TRAINING, TaskHours
from orchestrator.plan.plan import Plan, TaskPlan, plan_path
from orchestrator.plan.profile import ProfileError
from orchestrator.report import write_report
from tests.orchestrator.record_factory import (
    make_campaign,
    make_dense,
    make_task_result,
    make_trials,
)

STARTED = "2026-11-20T10:00:00+00:00"
AT = 1795168800.0
"""Seconds since the epoch."""


def finished(at: float = AT + 60, **fields: Any) -> CampaignResult:
    trials = [replace(t, finished=at) for t in make_trials()]
    dense = replace(make_dense(), finished=at)
    choice = Choice(key=None, sentence="none", front=[], passed=[])
    task = make_task_result(trials, dense, choice, promotion=None)
    return make_campaign([task], started=STARTED, **fields)


def planned(result: CampaignResult, **fields: Any) -> Plan:
    """With the very seconds of the trainings, halved, and a plausible rest."""
    (task,) = result.tasks
    parts = {k: Range.around(s / 2) for k, s in training_seconds(task).items() if s}
    hours = TaskHours(side_by_side=1, parts=parts, wall=Range(), worker=Range(), idle=0.0)
    values: dict[str, Any] = {
        "version": 1,
        "name": result.name,
        "spec_hash": result.spec_hash,
        "made": STARTED,
        "source": "probe",
        "machine": {},
        "machines": "one machine",
        "tasks": [
            TaskPlan(
                task=task.task,
                kind=task.kind,
                data_hash="hash",
                trials=len(task.trials),
                rounds=[len(task.trials)],
                workers=1,
                side_by_side=1,
                steps={"dense": 1},
                hours=hours,
                bytes=TaskBytes(parts={}, passing=0),
                memory_bytes=0,
                device_bytes=0,
            )
        ],
        "seconds": Range.around(result.seconds * 2),
        "cpu_seconds": None,
        "gpu_seconds": None,
        "bytes": dict.fromkeys(disk.KEPT_PARTS, 100),
        "passing_bytes": 0,
    }
    return Plan(**(values | fields))


def test_parts_are_compared_with_the_records():
    result = finished()
    found = compare(planned(result), result, {disk.MODELS: 80, disk.DATA: 100})
    rows = {row.part: row for row in found.seconds}
    assert set(rows) == {DENSE_TRAINING, BEFORE, AFTER, ALL_TRAINING, WALL}
    assert rows[BEFORE].error == pytest.approx(-0.5)
    assert not rows[BEFORE].within
    records = [result.tasks[0].dense, *result.tasks[0].trials]
    assert rows[ALL_TRAINING].actual == pytest.approx(sum(r.train_seconds for r in records))
    assert (rows[WALL].actual, rows[WALL].error) == (result.seconds, pytest.approx(1.0))
    sizes = {row.part: row for row in found.bytes}
    assert set(sizes) == {disk.MODELS, disk.DATA, ALL_BYTES}
    assert sizes[disk.MODELS].error == pytest.approx(0.25)
    assert sizes[ALL_BYTES].actual == 180
    assert not found.notes


def test_seconds_before_the_projection_end_with_its_last_point():
    trial = make_trials()[0]
    last = [point for point in trial.curve if point.phase in ("anneal", "hold")][-1]
    assert gated_seconds(trial) == last.seconds
    assert gated_seconds(make_dense()) == 0


def test_a_campaign_in_several_starts_has_no_whole_time():
    result = finished(at=AT - 60)
    found = compare(planned(result), result, {})
    assert WALL not in {row.part for row in found.seconds}
    assert any("an earlier start" in note for note in found.notes)


def test_another_spec_and_failed_trials_are_told():
    result = finished()
    plan = planned(result)
    fewer = replace(result.tasks[0], trials=result.tasks[0].trials[:-1])
    notes = compare(plan, replace(result, tasks=[fewer], spec_hash="other"), {}).notes
    number = len(result.tasks[0].trials)
    assert notes[0] == "the plan was made for another version of the spec"
    assert notes[1] == f"task docs-lm: {number} planned, {number - 1} finished trials"


def test_a_plan_is_read_as_it_was_kept(tmp_path: Path):
    plan = planned(finished())
    path = tmp_path / "deep" / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert Plan.load(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}'])
def test_a_damaged_plan_is_named_and_keeps_no_report(tmp_path: Path, text: str, caplog: Any):
    layout = Layout(tmp_path, "small")
    layout.root.mkdir()
    plan_path(layout).write_text(text)
    with pytest.raises(ProfileError, match=r"plan\.json"):
        Plan.load(plan_path(layout))
    assert against_plan(layout, finished(), local=True) is None
    assert "plan.json" in caplog.text


def test_no_plan_no_comparison(tmp_path: Path):
    assert against_plan(Layout(tmp_path, "small"), finished(), local=True) is None


def test_the_report_tells_cost_against_plan(tmp_path: Path):
    result = finished()
    without = write_report(result, tmp_path / "without.html").read_text()
    assert "Cost against plan" not in without
    comparison = compare(planned(result), result, {disk.MODELS: 80})
    page = write_report(result, tmp_path / "with.html", comparison).read_text()
    assert "Cost against plan" in page
    assert "docs-lm: trials, to the projection" in page
    assert "-50.0%" in page
    assert "+25.0%" in page
    json.dumps(comparison.notes)

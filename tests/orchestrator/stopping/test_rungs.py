"""What a campaign's rungs see, decide and remember: reports in, decisions and files out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.layout import Layout
from orchestrator.method_search import TrialPlan
from orchestrator.records import CurvePoint, ModelRecord
from orchestrator.search import draws_among, plan_trials
from orchestrator.spec import CampaignSpec, MethodSpec
from orchestrator.spec_stopping import StoppingSpec
from orchestrator.stopping.notes import Note, Notes, Passed, read_notes
from orchestrator.stopping.rungs import Rungs, rung_at
from tests.orchestrator.record_factory import make_trial
from tests.orchestrator.small import docs_task

STOPPING = StoppingSpec(rungs=[0.4, 0.8], keep=0.5, at_least=2)


def campaign(**search: Any) -> CampaignSpec:
    return CampaignSpec.model_validate(
        {
            "name": "rungs",
            "tasks": [docs_task("lm", steps=10) | {"evaluate_every": 5}],
            "method": {"kind": "adaptive", "steps": 100, "gated_fraction": 0.3},
            "search": {
                "density": [0.5, 0.25],
                "trials_per_density": 3,
                "finetune_learning_rate": {"uniform": [0.001, 0.1]},
            }
            | search,
        }
    )


def draws_of(spec: CampaignSpec, density: float = 0.5) -> list[TrialPlan]:
    plans = draws_among(spec, plan_trials(spec, spec.tasks[0], "data"))
    return [plan for plan in plans if plan.method.density == density]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, "rungs")


def rungs_in(
    layout: Layout, plans: list[TrialPlan], higher: bool = False, **finished: ModelRecord
) -> Rungs:
    found = Rungs(STOPPING, higher, Notes(layout, "lm"))
    found.plan(plans, finished)
    return found


def report(step: int, validation: float | None = None, **more: Any) -> dict[str, Any]:
    values = {"step": step, "total_steps": 100, "phase": "finetune", **more}
    return values if validation is None else values | {"validation": validation}


def arrive(rungs: Rungs, key: str, step: int, validation: float, **more: Any) -> Passed | None:
    """A training whose validations stand where they are."""
    rungs.arrive(key, report(step - 1, validation, **more))
    return rungs.arrive(key, report(step, validation, **more))


def test_a_draw_that_others_are_ahead_of_stops(layout: Layout):
    a, b, c = draws_of(campaign())
    rungs = rungs_in(layout, [a, b, c])
    assert rungs.arrive(a.key, report(35, 2.0)) is None, "before the rung"
    assert rungs.arrive(a.key, report(40, 2.0)) is None
    assert rungs.arrive(a.key, report(45, 99.0)) is None, "once per rung"
    rungs.arrive(a.key, report(50, 2.0))
    found = arrive(rungs, b.key, 44, 3.0)
    assert found is not None
    assert (found.rung, found.step, found.validation) == (0.4, 44, 3.0)
    assert arrive(rungs, c.key, 41, 1.0) is None
    assert rungs.stopped == {b.key}
    # at the next rung a is behind c
    assert arrive(rungs, c.key, 80, 1.0) is None
    assert arrive(rungs, a.key, 80, 1.5) is not None
    assert rungs.stopped == {a.key, b.key}


def test_a_draw_that_is_behind_and_falls_fast_goes_on(layout: Layout):
    a, b, c = draws_of(campaign())
    rungs = rungs_in(layout, [a, b, c])
    assert arrive(rungs, a.key, 40, 2.0) is None
    assert rungs.arrive(b.key, report(35, 2.5)) is None
    assert rungs.arrive(b.key, report(40, 2.2)) is None
    # 0.06 a step, for as many steps again as there were since the gates closed at 30
    (passed,) = rungs.note(b.key).passed
    assert passed.outlook == pytest.approx(2.2 - 0.06 * 10)
    # what was decided by stays what others are compared with
    again = rungs_in(layout, [a, b, c])
    assert arrive(again, c.key, 40, 2.1) is not None


def test_a_training_that_went_back_is_judged_by_what_it_does_now(layout: Layout):
    a, b, _ = draws_of(campaign())
    rungs = rungs_in(layout, [a, b])
    assert arrive(rungs, a.key, 40, 2.0) is None
    # from 36 to an earlier state: from there it would have fallen fast
    for step, loss in ((34, 9.0), (36, 20.0), (35, 9.0)):
        assert rungs.arrive(b.key, report(step, loss)) is None
    found = rungs.arrive(b.key, report(40, 9.0))
    assert found is not None
    assert found.outlook == 9.0


def test_what_is_told_between_validations_judges_nobody(layout: Layout):
    """It has no loss, and would count as the worst of all."""
    a, b, _ = draws_of(campaign())
    rungs = rungs_in(layout, [a, b])
    assert arrive(rungs, a.key, 40, 2.0) is None
    assert rungs.arrive(b.key, report(35, 1.9)) is None
    for step in (40, 41, 42):
        assert rungs.arrive(b.key, report(step, between=True)) is None
    assert rungs.arrive(b.key, report(45, 1.8)) is None
    (passed,) = rungs.note(b.key).passed
    assert (passed.step, passed.validation) == (45, 1.8)
    assert passed.outlook == pytest.approx(1.8 - 0.01 * 15)


def test_a_greater_score_is_the_better_one(layout: Layout):
    a, b, _ = draws_of(campaign())
    rungs = rungs_in(layout, [a, b], higher=True)
    assert arrive(rungs, a.key, 40, 0.9) is None
    assert arrive(rungs, b.key, 40, 0.8) is not None


def test_a_validation_that_is_not_finite_is_the_worst(layout: Layout):
    a, b, _ = draws_of(campaign())
    rungs = rungs_in(layout, [a, b])
    assert arrive(rungs, a.key, 40, 50.0) is None
    found = rungs.arrive(b.key, report(40))
    assert found is not None
    assert found.validation is None


@pytest.mark.parametrize("phase", ["anneal", "hold", "dense"])
def test_nobody_is_judged_while_gates_move(layout: Layout, phase: str):
    a, b, _ = draws_of(campaign())
    rungs = rungs_in(layout, [a, b])
    assert arrive(rungs, a.key, 40, 1.0) is None
    assert arrive(rungs, b.key, 40, 9.0, phase=phase) is None
    assert rungs.note(a.key).passed
    assert [note.key for note in Notes(layout, "lm")] == [a.key]


def test_others_than_draws_and_the_last_step_are_never_judged(layout: Layout):
    spec = campaign(repeats=2)
    a, b, _ = draws_of(spec)
    rungs = rungs_in(layout, [a])
    assert arrive(rungs, a.key, 40, 1.0) is None
    assert arrive(rungs, b.key, 40, 9.0) is None
    assert arrive(rungs, "dense", 40, 9.0) is None
    assert not rungs.judges(b.key)
    rungs = rungs_in(layout, [a, b])
    assert arrive(rungs, a.key, 100, 9.0) is None
    assert arrive(rungs, b.key, 100, 99.0) is None


@pytest.mark.parametrize(
    ("steps", "gated", "step", "expected"),
    [
        (100, 0.3, 39, None),
        (100, 0.3, 40, 0.4),
        (100, 0.3, 100, 0.8),
        # fixed at the rung itself, and not by then
        (100, 0.4, 45, 0.4),
        (100, 0.41, 45, None),
        (100, 0.41, 80, 0.8),
        (100, 0.9, 99, None),
        # in floating point 0.8 * 15 is above 12
        (15, 0.0, 12, 0.8),
    ],
)
def test_a_rung_is_reached_from_its_step_on(
    steps: int, gated: float, step: int, expected: float | None
):
    kind = "adaptive" if gated else "low-rank"
    fields = {"gated_fraction": gated} if gated else {}
    method = MethodSpec(kind=kind, density=0.5, steps=steps, **fields)
    assert rung_at([0.4, 0.8], method, steps, step) == expected


def test_a_size_that_was_missed_is_part_of_what_is_compared(layout: Layout):
    a, b, _ = draws_of(campaign())
    rungs = rungs_in(layout, [a, b])
    assert arrive(rungs, a.key, 40, 3.0, realized_density=0.4995) is None
    found = arrive(rungs, b.key, 40, 1.0, realized_density=0.62)
    assert found is not None
    assert found.excess == pytest.approx(0.12)
    assert found.density == 0.62


def test_what_was_decided_outlives_the_driver(layout: Layout):
    a, b, c = draws_of(campaign())
    rungs = rungs_in(layout, [a, b, c])
    arrive(rungs, a.key, 40, 2.0)
    arrive(rungs, b.key, 40, 3.0)
    rungs.ended(b.key, 52, recorded=True)
    again = rungs_in(layout, [a, b, c])
    assert again.stopped == {b.key}
    note = again.note(b.key)
    assert (note.ended_at, note.recorded, note.total_steps) == (52, True, 100)
    assert note.stopped is not None
    assert "place 2 of 2" in note.stopped.reason
    # what a trial that is gone had at the rung still counts
    assert arrive(again, c.key, 40, 2.5) is None
    assert again.note(c.key).passed[0].among == 3
    # a trial that goes on from an earlier state is not judged again
    assert arrive(again, a.key, 41, 99.0) is None
    assert len(again.note(a.key).passed) == 1


def test_a_trial_that_the_spec_no_longer_draws_does_not_count(layout: Layout):
    a, b, _ = draws_of(campaign())
    arrive(rungs_in(layout, [a, b]), a.key, 40, 2.0)
    assert arrive(rungs_in(layout, [b]), b.key, 40, 3.0) is None


def test_models_that_were_trained_without_rungs_count(layout: Layout):
    a, b, _ = draws_of(campaign())
    points = [
        (20, "hold", 1.0),
        (35, "finetune", 2.0),
        (40, "finetune", 2.0),
        (45, "finetune", 1.0),
        (100, "finetune", 1.0),
    ]
    curve = [
        CurvePoint(step=step, phase=phase, seconds=1.0, validation=value)
        for step, phase, value in points
    ]
    record = replace(make_trial(), key=a.key, config=a.method.model_dump(), curve=curve)
    record = replace(record, densities=None)
    rungs = rungs_in(layout, [a, b], **{a.key: record})
    # 2.0 at step 40 is what stands at the rung, not what came later
    assert arrive(rungs, b.key, 40, 1.9) is None
    rungs = rungs_in(Layout(layout.storage, "another"), [a, b], **{a.key: record})
    assert arrive(rungs, b.key, 40, 2.1) is not None


def test_nobody_is_stopped_by_what_cannot_be_written(
    layout: Layout, caplog: pytest.LogCaptureFixture
):
    a, b, _ = draws_of(campaign())
    rungs = rungs_in(layout, [a, b])
    arrive(rungs, a.key, 40, 2.0)
    (layout.stopping / f"{b.key}.json.partial").mkdir()
    assert arrive(rungs, b.key, 40, 3.0) is None
    assert "is not judged at rung 0.4" in caplog.text
    assert rungs.stopped == set()
    (layout.stopping / f"{b.key}.json.partial").rmdir()
    assert rungs.arrive(b.key, report(45, 3.0)) is not None


@pytest.mark.parametrize("left", ["", "{", "[]", '{"key": "x"}', '{"key": "x", "tasks": 1}'])
def test_a_damaged_note_is_told_of(layout: Layout, left: str):
    layout.stopping.mkdir(parents=True)
    (layout.stopping / "x.json").write_text(left)
    with pytest.raises(StorageError, match=r"x\.json cannot be read: .*the trial is trained"):
        read_notes(layout)


def test_what_a_killed_process_was_writing_is_passed_over(layout: Layout):
    a, b, _ = draws_of(campaign())
    arrive(rungs_in(layout, [a, b]), a.key, 40, 2.0)
    (layout.stopping / "half.json.partial").write_text('{"key"')
    (note,) = read_notes(layout)
    assert note.key == a.key
    assert not list(layout.stopping.glob(f"{a.key}.json.partial"))


def test_notes_are_plain_json_and_of_one_task(layout: Layout):
    passed = Passed(
        rung=0.4,
        step=40,
        validation=2.0,
        excess=0.0,
        density=0.49,
        kept=False,
        reason="behind",
        rank=1,
        place=2,
        among=2,
    )
    Notes(layout, "lm").passed("k", 100, passed)
    values = json.loads((layout.stopping / "k.json").read_text())
    assert values["task"] == "lm"
    assert values["passed"][0]["reason"] == "behind"
    assert list(Notes(layout, "another")) == []
    assert list(Notes(layout, "lm")) == [Note(key="k", task="lm", total_steps=100, passed=[passed])]


def test_draws_are_what_is_tuned():
    spec = campaign(tune_at=0.25, repeats=2)
    task = spec.tasks[0]
    first = plan_trials(spec, task, "data")
    assert {plan.key for plan in draws_among(spec, first)} == {plan.key for plan in first}
    quality = {plan.key: float(n) for n, plan in enumerate(first)}
    later = plan_trials(spec, task, "data", quality)
    assert len(later) > len(first)
    assert draws_among(spec, later) == first
    quality |= {plan.key: 5.0 for plan in later if plan.key not in quality}
    spec = campaign(tune_at=0.25, repeats=2, finalists=4)
    finalists = plan_trials(spec, task, "data", quality)
    assert len(finalists) > len(later)
    assert draws_among(spec, finalists) == first

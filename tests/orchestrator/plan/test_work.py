"""What a spec asks for, against counts by hand and against the curves of real trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.ladder import plan_steps
from orchestrator.plan.work import (
    SMALL,
    WHOLE,
    setting_of,
    settings,
    stretch_points,
    stretch_validations,
    task_work,
    trial_work,
)
from orchestrator.search import expected_rounds, expected_trials
from orchestrator.spec import MethodSpec
from orchestrator.spec_method import merge_method
from tests.orchestrator.plan.specs import campaign
from tests.orchestrator.small import Family, make_job, method, train_to


def test_a_campaign_by_hand():
    spec = campaign()
    work = task_work(spec, spec.tasks[0])
    assert work.dense.steps == {"dense": 20}
    # at 5, 10, 15, 20, and of the export
    assert work.dense.validations == {SMALL: 5}
    assert [len(trials) for trials in work.rounds] == [2]
    trial = work.trials[0]
    assert trial.steps == {"gated": 6, "finetune": 6}
    # at 5 and 6, and before the projection; after it, at 5 and 6, of the export
    assert trial.validations == {WHOLE: 3, SMALL: 4}
    assert work.steps() == {"dense": 20, "gated": 12, "finetune": 12, "from-scratch": 0}
    assert (work.timings, work.int8) == (2, 0)


def test_int8_is_measured_of_the_dense_model_too():
    spec = campaign(measure={"int8": True})
    assert task_work(spec, spec.tasks[0]).int8 == 3


def test_a_pretrained_model_is_validated_and_not_trained():
    spec = campaign(task={"dense": {"steps": 0, "learning_rate": 1e-3}})
    dense = task_work(spec, spec.tasks[0]).dense
    assert (dense.steps, dense.validations, dense.num_points) == ({}, {SMALL: 1}, 0)


def test_a_small_model_from_scratch_trains_for_both():
    spec = campaign(method={"kind": "from-scratch", "steps": 12})
    trial = task_work(spec, spec.tasks[0]).trials[0]
    assert trial.steps == {"from-scratch": 32}
    assert trial.validations == {SMALL: 8}


@pytest.mark.parametrize(
    "search",
    [
        {"density": [0.5, 0.3], "repeats": 3},
        {"density": [0.5, 0.3], "tune_at": 0.3, "trials_per_density": 4, "repeats": 2,
         "penalty_lr": {"uniform": [0.1, 1.0]}},
        {"density": [0.5, 0.3], "finalists": 2,
         "methods": {"a": {}, "b": {"kind": "low-rank"}}},
    ],
)  # fmt: skip
def test_rounds_are_all_trials_once(search: dict[str, Any]):
    spec = campaign(search=search)
    rounds = list(expected_rounds(spec, spec.tasks[0]))
    keys = [plan.key for plans in rounds for plan in plans]
    assert len(keys) == len(set(keys)) == expected_trials(spec, spec.tasks[0])
    assert len(rounds) > 1


def test_later_rounds_follow_from_the_first():
    search = {"density": [0.5, 0.3], "tune_at": 0.3, "trials_per_density": 4, "repeats": 2}
    spec = campaign(search=search | {"penalty_lr": {"uniform": [0.1, 1.0]}})
    # four draws; then their best once more, and two runs of it at the other density
    assert [len(r) for r in task_work(spec, spec.tasks[0]).rounds] == [4, 3]


@pytest.mark.parametrize(("steps", "every"), [(40, 7), (200, 25), (81, 1000), (1, 1), (0, 5)])
def test_points_as_the_loop_takes_them(steps: int, every: int):
    log_every = max(1, steps // 40)
    done = range(1, steps + 1)
    taken = [d for d in done if d % every == 0 or d == steps or d % log_every == 0]
    assert stretch_points(steps, every) == len(taken)
    validated = [d for d in done if d % every == 0 or d == steps]
    assert stretch_validations(steps, every) == len(validated)


def test_as_many_steps_points_and_validations_as_a_real_training(lm: Family, tmp_path: Path):
    spec = campaign(
        tasks=[lm.task.model_dump(mode="json")],
        method=method(density=0.25).model_dump(),
        search={"density": [0.25]},
    )
    work = task_work(spec, spec.tasks[0])
    (trial,) = work.trials
    evaluated: list[str] = []
    task = make_job(lm.task, lm.data, method(density=0.25), lm.dense.export)
    with count_evaluations(evaluated):
        record = train_to(tmp_path / "trial", task)
    assert trial.num_points == len(record.curve)
    assert trial.num_steps == record.curve[-1].step
    assert sum(trial.validations.values()) == evaluated.count("validation")
    assert work.dense.num_points == len(lm.dense.curve)


def count_evaluations(found: list[str]) -> Any:
    from unittest import mock

    from orchestrator.tasks.language_modelling import LanguageModellingTask

    real = LanguageModellingTask.evaluate_shard

    def count(self: Any, model: Any, split: str, rank: int, world: int) -> Any:
        found.append(split)
        return real(self, model, split, rank, world)

    return mock.patch.object(LanguageModellingTask, "evaluate_shard", count)


def changed(**fields: Any) -> MethodSpec:
    return MethodSpec(**merge_method({"kind": "flop-l0", "steps": 12}, fields))


def test_models_of_one_setting_cost_alike():
    same = [changed(density=0.1), changed(penalty_lr=0.7), changed(steps=40), changed(distill=0.9)]
    assert {setting_of(each) for each in same} == {setting_of(changed())}
    others = [
        changed(distill=0.0),
        changed(distill_hidden=1.0),
        changed(start_rank="break-even"),
        changed(include=["*.attn.*"]),
        changed(kind="np-l0"),
    ]
    assert len({setting_of(each) for each in [*others, changed()]}) == 6


def test_settings_with_most_steps_come_first():
    methods = {"few": {"kind": "low-rank", "steps": 4}, "many": {"steps": 90}}
    spec = campaign(search={"density": [0.5, 0.25], "methods": methods})
    found = list(settings(task_work(spec, spec.tasks[0])))
    assert [name.split("-")[0] for name, _ in found] == ["flop", "low"]
    assert all(len(trials) == 2 for _, trials in found)


def test_a_method_without_gates_has_one_phase():
    spec = campaign(method={"kind": "low-rank", "steps": 12})
    trial = trial_work(spec.tasks[0], next(expected_rounds(spec, spec.tasks[0]))[0], spec.search)
    assert trial.steps == {"finetune": 12}
    assert trial.validations == {WHOLE: 1, SMALL: 1 + 3 + 1}


def test_what_a_ladder_shares_is_counted_once():
    spec = campaign(
        method={"kind": "adaptive", "steps": 100},
        search={"density": [0.5, 0.25, 0.1], "ladder": {"by": "trunk"}},
    )
    work = task_work(spec, spec.tasks[0])
    assert spec.search.ladder is not None
    rungs, branch = plan_steps(
        spec.search.ladder, spec.method_of(spec.tasks[0]), spec.search.descending
    )
    assert sum(trial.steps["gated"] for trial in work.trials) == rungs[-1]
    assert {trial.steps["finetune"] for trial in work.trials} == {branch}


def test_the_models_of_a_chain_are_divided_as_those_of_their_own():
    ladder = {"descent": 0.5}
    spec = campaign(
        method={"kind": "adaptive", "steps": 100},
        search={"density": [0.5, 0.2, 0.1], "ladder": ladder},
    )
    steps = [trial.steps for trial in task_work(spec, spec.tasks[0]).trials]
    # three quarters of the way to the last density lie before the second
    assert steps == [
        {"gated": 40, "finetune": 60},
        {"gated": 30, "finetune": 45},
        {"gated": 10, "finetune": 15},
    ]

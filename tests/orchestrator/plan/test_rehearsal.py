"""What is left of a rehearsal's time, by hand; the rehearsal itself runs in the benchmark."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.campaign_records import Choice
from orchestrator.plan.figures import Range
from orchestrator.plan.overhead import REFERENCE_START_S, scaled
from orchestrator.plan.rehearsal import overhead_of, rehearsal_spec
from orchestrator.plan.work import task_work
from orchestrator.tracking.reading import LoggedRun
from tests.orchestrator.plan.specs import campaign, cost, profile
from tests.orchestrator.record_factory import (
    make_campaign,
    make_dense,
    make_task_result,
    make_trials,
)


def run(key: str, started: float, ended: float) -> LoggedRun:
    return LoggedRun(
        run_id=key, key=key, status="FINISHED", started=started, ended=ended, params={}, tags={}
    )


def test_what_is_not_training_is_overhead():
    spec = campaign()
    work = task_work(spec, spec.tasks[0])
    costs = profile(cost(work.trials[0].setting, 0.25), cost(work.trials[0].setting, 0.5))
    trials = [replace(t, train_seconds=5.0) for t in make_trials()[:2]]
    choice = Choice(key=None, sentence="none", front=[], passed=[])
    task = make_task_result(trials, replace(make_dense(), train_seconds=4.0), choice)
    dense, one, two = task.dense.key, trials[0].key, trials[1].key
    # begin 20; the search 6, around a training 10, export 3; two measurements of 3; the end 9
    runs = {
        dense: run(dense, 120, 120 + 6 + 10 + 4 + 3),
        one: run(one, 143, 143 + 10 + 5 + 3),
        two: run(two, 143, 161 + 10 + 5 + 3),
    }
    found = overhead_of(make_campaign([task]), runs, work.models, costs, 100, 179 + 2 * 3 + 9)
    assert found.measured
    assert found.begin_s.value == pytest.approx(20)
    assert found.trial_s.value == pytest.approx(10)
    assert found.search_s.value == pytest.approx(6)
    assert found.task_s.value == pytest.approx(9)


def test_a_rehearsal_is_small_and_keeps_to_itself(tmp_path):
    spec = campaign(
        search={"density": [0.3, 0.2], "repeats": 5, "methods": {"a": {}, "b": {}}},
        promote={"gates": ["bytes <= 10%"]},
        tracking={"uri": "http://somewhere"},
        resources={"workers": 4, "concurrent_trials": 3},
        task={"dense": {"steps": 900, "learning_rate": 1e-3, "batch": 16}},
    )
    small = rehearsal_spec(spec, spec.tasks[0], workers=2, folder=str(tmp_path))
    work = task_work(small, small.tasks[0])
    assert (work.dense.num_steps, [t.density for t in work.trials]) == (8, [0.2, 0.3])
    assert all(trial.num_steps == 8 for trial in work.trials)
    assert small.tracking.uri is None
    assert small.storage == str(tmp_path)
    resources = small.resources_of(small.tasks[0])
    assert (resources.workers, resources.concurrent_trials) == (2, 1)
    # each worker has the share of the batch that it will have
    assert small.tasks[0].dense.batch == 8


def test_one_density_has_another_beside_it(tmp_path):
    spec = campaign(search={"density": [0.2]})
    small = rehearsal_spec(spec, spec.tasks[0], workers=1, folder=str(tmp_path))
    assert small.search.density == [0.2, 0.6]


def test_constants_are_scaled_by_the_start_of_a_process():
    one, slow = scaled(REFERENCE_START_S), scaled(3 * REFERENCE_START_S)
    assert slow.trial_s.value == pytest.approx(3 * one.trial_s.value)
    assert slow.report_s == one.report_s
    assert isinstance(one.begin_s, Range)

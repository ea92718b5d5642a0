"""Hours by hand: everything takes a second, and the processes around it nothing, or ten."""

from __future__ import annotations

import pytest

from orchestrator.plan.figures import Range
from orchestrator.plan.hours import (
    AFTER,
    AROUND,
    BEFORE,
    DENSE_TRAINING,
    EXPORT,
    MEASURING,
    makespan,
    task_hours,
)
from orchestrator.plan.work import task_work
from tests.orchestrator.plan.specs import campaign, cost, overhead, profile


def hours_of(side_by_side: int = 1, **seconds: float):
    spec = campaign()
    work = task_work(spec, spec.tasks[0])
    setting = work.trials[0].setting
    costs = profile(cost(setting, 0.25), cost(setting, 0.5))
    return task_hours(work, costs, overhead(**seconds), side_by_side)


def test_parts_are_what_the_records_will_tell():
    parts = {name: seconds.value for name, seconds in hours_of().parts.items()}
    # set-up, 20 steps, 4 validations
    assert parts[DENSE_TRAINING] == pytest.approx(25)
    # two trials: set-up, 6 steps, 2 validations at their end
    assert parts[BEFORE] == pytest.approx(2 * 9)
    # a validation on either side of the projection, it, 6 steps, 2 validations
    assert parts[AFTER] == pytest.approx(2 * (1 + 1 + 1 + 6 + 2))
    # three models: export, validation and test
    assert parts[EXPORT] == pytest.approx(3 * 3)
    assert parts[MEASURING] == pytest.approx(2 * 3)


def test_the_wall_is_the_sum_when_trials_wait_for_each_other():
    hours = hours_of()
    assert hours.wall.value == pytest.approx(sum(s.value for s in hours.parts.values()))
    assert hours.idle == pytest.approx(0)


def test_processes_cost_per_model_report_and_task_and_once():
    without, found = hours_of(), hours_of(search_s=10, trial_s=100, report_s=1, task_s=1000)
    # the search; three models; validations in training: 4, and 2 + 2 of either trial
    assert found.parts[AROUND].value == pytest.approx(10 + 3 * 100)
    assert found.wall.value - without.wall.value == pytest.approx(10 + 300 + 4 + 2 * 4 + 1000)


def test_trials_side_by_side_share_the_time():
    one, two = hours_of(1), hours_of(2)
    trial = (one.parts[BEFORE] + one.parts[AFTER]).value / 2 + 3
    assert one.wall.value - two.wall.value == pytest.approx(trial)
    assert two.worker == one.worker


def test_a_range_goes_through_to_the_sum():
    hours = hours_of()
    assert hours.wall.low < hours.wall.value < hours.wall.high
    assert hours.parts[DENSE_TRAINING].low == pytest.approx(25 / 2)
    assert hours.parts[DENSE_TRAINING].high == pytest.approx(25 * 2)


@pytest.mark.parametrize(
    ("seconds", "places", "expected"),
    [([3, 3, 3], 1, 9), ([3, 3, 3], 2, 6), ([1, 5, 1, 1], 2, 5), ([2], 8, 2), ([], 3, 0)],
)
def test_trials_begin_as_places_come_free(seconds: list[float], places: int, expected: float):
    assert makespan([Range.around(s) for s in seconds], places).value == expected


def test_idle_places_are_those_that_wait_for_the_last_trial():
    spec = campaign(search={"density": [0.5, 0.3, 0.25]})
    work = task_work(spec, spec.tasks[0])
    costs = profile(cost(work.trials[0].setting, 0.5))
    assert task_hours(work, costs, overhead(), 2).idle == pytest.approx(1 - 3 / 4)

"""Tasks on shared machines, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan.figures import Range
from orchestrator.plan.fit import task_fit
from orchestrator.plan.hours import makespan
from orchestrator.plan.sharing import alike, passing_bytes, shared_makespan
from orchestrator.spec import Resources
from orchestrator.turns import Machine


def lasts(*seconds: float) -> list[Range]:
    return [Range.around(each) for each in seconds]


def takes(concurrent: int, **fields: Any) -> Resources:
    return Resources(concurrent_trials=concurrent, **fields)


def test_a_task_waits_for_its_own_rounds_alone():
    rounds = {"quick": [lasts(1), lasts(2, 2)], "slow": [lasts(10), lasts(2, 2)]}
    # the quick one is through after 5 s on the place that the other does not take
    two = shared_makespan(rounds, dict.fromkeys(rounds, takes(2)), [{"CPU": 2}])
    assert two.value == 12
    one = shared_makespan(rounds, dict.fromkeys(rounds, takes(1)), [{"CPU": 2}])
    assert one.value == 1 + 4 + 10 + 4


def test_what_does_not_fit_beside_another_waits():
    rounds = {"wide": [lasts(5)], "narrow": [lasts(3, 3)]}
    resources = {"wide": takes(1, workers=2), "narrow": takes(2)}
    assert shared_makespan(rounds, resources, [{"CPU": 2}]).value == 5 + 3
    assert shared_makespan(rounds, resources, [{"CPU": 2}, {"CPU": 2}]).value == 6


def test_machines_with_labels():
    nodes = [
        {"CPU": 2, "labels": {"pool": "a"}},
        {"CPU": 4, "GPU": 1, "labels": {"pool": "b"}},
        {"CPU": 8, "labels": {"pool": "a"}},
        {"CPU": 1},
    ]
    assert alike(nodes) == [
        Machine(amounts={"CPU": 10, "GPU": 0}, labels={"pool": "a"}),
        Machine(amounts={"CPU": 4, "GPU": 1}, labels={"pool": "b"}),
        Machine(amounts={"CPU": 1, "GPU": 0}, anything=True),
    ]
    only = takes(9, labels={"pool": "b"})
    assert shared_makespan({"t": [lasts(*[1] * 10)]}, {"t": only}, nodes[:3]).value == 3


def test_nothing_takes_no_time():
    rounds: dict[str, Any] = {"a": [], "b": [[]]}
    assert shared_makespan(rounds, dict.fromkeys(rounds, takes(3)), [{"CPU": 2}]).value == 0


def test_a_range_goes_through():
    rounds = {"a": [lasts(4)], "b": [lasts(8)]}
    found = shared_makespan(rounds, dict.fromkeys(rounds, takes(1)), [{"CPU": 2}])
    assert found.value == 12
    assert (found.low, found.high) == (lasts(12)[0].low, lasts(12)[0].high)


@given(seconds=st.lists(st.floats(0.1, 10), max_size=12), places=st.integers(1, 5))
def test_one_round_of_one_task_is_list_scheduling(seconds: list[float], places: int):
    each = lasts(*seconds)
    found = shared_makespan({"t": [each]}, {"t": takes(9)}, [{"CPU": places}])
    assert found.value == pytest.approx(makespan(each, places).value)


def test_the_largest_trainings_that_run_at_once_are_on_their_way():
    resources = {"a": takes(1, workers=2), "b": takes(2)}
    fits = [task_fit(name, each, [{"CPU": 2}], 5) for name, each in resources.items()]
    assert [fit.side_by_side for fit in fits] == [1, 2]
    assert passing_bytes({"a": 10, "b": 4}, resources, fits) == 14
    assert passing_bytes({"a": 1, "b": 4}, resources, fits) == 8
    assert passing_bytes({"a": 10}, {"a": resources["a"]}, fits[:1]) == 10

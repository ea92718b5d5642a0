"""What a spec leaves unused, and what it asks for in vain."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.plan.fit import Node, task_fit
from orchestrator.plan.unused import (
    unused_of_measure,
    unused_of_search,
    unused_places,
    unused_resources,
)
from orchestrator.plan.work import task_work
from tests.orchestrator.plan.specs import campaign


def notes_of_search(search: dict[str, Any]) -> list[str]:
    spec = campaign(search=search)
    return list(unused_of_search(spec, spec.tasks[0], task_work(spec, spec.tasks[0])))


@pytest.mark.parametrize(
    ("search", "note"),
    [
        (
            {"density": [0.5, 0.3, 0.2], "tune_at": 0.3, "trials_per_density": 2,
             "penalty_lr": {"uniform": [0.1, 1]}},
            "nothing is tuned at density 0.5, 0.2: they take the values of the best draw at 0.3",
        ),
        (
            {"density": [0.5], "penalty_lr": {"uniform": [0.1, 1]}},
            "searched with one draw per density",
        ),
        ({"density": [0.5], "trials_per_density": 3}, "nothing is searched"),
        (
            {"density": [0.5], "trials_per_density": 4, "penalty_lr": [0.1, 0.2]},
            "4 draws per density were asked for, the lists of values have 2 different ones",
        ),
    ],
)  # fmt: skip
def test_of_the_search(search: dict[str, Any], note: str):
    (found,) = notes_of_search(search)
    assert note in found


def test_a_search_that_uses_all_has_no_note():
    search = {"density": [0.5, 0.3], "trials_per_density": 3}
    assert notes_of_search(search | {"penalty_lr": {"uniform": [0.1, 1]}}) == []
    assert notes_of_search({"density": [0.5, 0.3], "methods": {"a": {}}}) == []


@pytest.mark.parametrize(
    ("workers", "nodes", "notes"),
    [
        (2, [{"CPU": 2}], 0),
        (1, [{"CPU": 2}], 1),
        (2, [{"CPU": 2, "GPU": 1}], 1),
        (1, [{"CPU": 1.5}], 0),
    ],
)
def test_of_the_machines(workers: int, nodes: list[Node], notes: int):
    spec = campaign(resources={"workers": workers})
    fit = task_fit("letters", spec.resources, nodes, most_at_once=1)
    found = list(unused_resources(spec, [fit], nodes))
    assert len(found) == notes
    assert all("idle" in note for note in found)


def test_of_the_places_for_trials():
    spec = campaign(resources={"concurrent_trials": 4})
    task, work = spec.tasks[0], task_work(spec, spec.tasks[0])
    fit = task_fit("letters", spec.resources, [{"CPU": 8}], most_at_once=2)
    (note,) = unused_places(task, work, fit, idle=0.0)
    assert note == "task letters: concurrent_trials is 4, and no round has more than 2 trials"
    spec = campaign(resources={"concurrent_trials": 2}, search={"density": [0.5, 0.4, 0.3]})
    work = task_work(spec, spec.tasks[0])
    fit = task_fit("letters", spec.resources, [{"CPU": 8}], most_at_once=3)
    (note,) = unused_places(spec.tasks[0], work, fit, idle=0.25)
    assert "25% of the time of 2 places" in note
    assert not list(unused_places(spec.tasks[0], work, fit, idle=0.1))


def test_of_the_measurements():
    spec = campaign(measure={"length": 64})
    (note,) = unused_of_measure(spec, spec.tasks[0], longest=32)
    assert "measure.length 64 is cut to 32" in note
    assert not list(unused_of_measure(spec, spec.tasks[0], longest=64))

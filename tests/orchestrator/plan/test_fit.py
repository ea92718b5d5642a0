"""How trials fit machines, and what is said when they do not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import CampaignError
from orchestrator.plan.fit import (
    machines,
    parse_cluster,
    places_on,
    task_fit,
    what_would_fit,
    worker_needs,
)
from orchestrator.plan.nodes import nodes_of_ray, this_node
from orchestrator.room import check_fits
from orchestrator.spec import Resources


def resources(**fields: Any) -> Resources:
    return Resources.model_validate(fields)


def test_room_is_counted_machine_by_machine():
    """Six CPUs on two machines are no room for three workers of two."""
    asked = resources(workers=1, cpus_per_worker=2, concurrent_trials=3)
    fit = task_fit("t", asked, [{"CPU": 3}, {"CPU": 3}], most_at_once=9)
    assert (fit.places, fit.side_by_side, fit.started) == (2, 2, 3)
    assert fit.warnings == [
        "task t: 3 trials would start side by side, and 2 have room (2 workers fit, counted "
        "machine by machine): set concurrent_trials to 2"
    ]
    assert not fit.refusals


def test_a_trial_that_fits_the_sum_and_no_machine_is_refused():
    asked = resources(workers=2, cpus_per_worker=4)
    nodes = [{"CPU": 3}] * 4
    check_fits(asked, {"CPU": 12, "driver": 1}, "t")  # the sum says yes
    fit = task_fit("t", asked, nodes, most_at_once=1)
    assert fit.refusals == [
        "task t: one trial needs 2 workers of 4 CPU, there is room for 0 on 4 machines (3 CPU "
        "each); what would fit: cpus_per_worker: 3, or machines with room for 2 workers of 4 CPU"
    ]


def test_fewer_workers_are_offered():
    asked = resources(workers=8, cpus_per_worker=1)
    text = what_would_fit(asked, [{"CPU": 2}])
    assert text == (
        "what would fit: workers: 2, or cpus_per_worker: 0.25, or machines with room for 8 workers "
        "of 1 CPU"
    )


def test_gpus():
    asked = resources(workers=4, gpus_per_worker=1, cpus_per_worker=2)
    fit = task_fit("t", asked, [{"CPU": 16, "GPU": 2}, {"CPU": 4, "GPU": 4}], most_at_once=5)
    assert (fit.places, fit.side_by_side) == (4, 1)
    fit = task_fit("t", asked, [{"CPU": 64}], most_at_once=5)
    assert "gpus_per_worker: 0" in fit.refusals[0]


def test_memory_counts_where_it_is_known():
    asked = resources(workers=1, concurrent_trials=4)
    node = {"CPU": 8, "memory": 10e9}
    fit = task_fit("t", asked, [node], most_at_once=4, memory_bytes=int(3e9))
    assert fit.side_by_side == 3
    assert "memory is for 3 workers of 3.00 GB" in fit.warnings[0]
    assert task_fit("t", asked, [{"CPU": 8}], 4, int(3e9)).side_by_side == 4
    refused = task_fit("t", asked, [node], 4, int(12e9)).refusals
    assert "1 worker of 1 CPU, 12.0 GB memory" in refused[0]


def test_machines_without_the_labels_have_no_room():
    asked = resources(workers=2, labels={"pool": "spot"}, concurrent_trials=2)
    spot, other = {"CPU": 2, "labels": {"pool": "spot"}}, {"CPU": 8, "labels": {}}
    assert task_fit("t", asked, [spot, other], 2).places == 2
    assert task_fit("t", asked, [spot, {"CPU": 8}], 2).places == 10  # nobody knows whose it is
    assert task_fit("t", resources(workers=2), [spot, other], 2).places == 10
    assert task_fit("t", asked, [spot, other], 2).started == 1
    assert task_fit("t", asked, [other], 2).refusals == [
        "task t: one trial needs 2 workers of 1 CPU, there is room for 0 on no machine with pool: "
        "spot; what would fit: machines with pool: spot with room for 2 workers of 1 CPU"
    ]
    two = parse_cluster('{"CPU": 2, "count": 2, "labels": {"pool": "spot"}}')
    assert task_fit("t", asked, two, 2).side_by_side == 2


def test_no_more_trials_than_a_round_has():
    fit = task_fit("t", resources(concurrent_trials=8), [{"CPU": 16}], most_at_once=3)
    assert (fit.side_by_side, fit.started, fit.warnings) == (3, 3, [])


def test_fractions_of_a_cpu():
    needs = worker_needs(resources(cpus_per_worker=0.1))
    assert places_on({"CPU": 0.3}, needs) == 3  # 0.3 / 0.1 is less than 3
    assert places_on({"CPU": 1}, needs) == 10


@given(
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 5]),
    st.lists(st.integers(0, 8), min_size=1, max_size=4),
)
def test_what_is_offered_fits(workers: int, cpus: int, sizes: list[int]):
    nodes = [{"CPU": size} for size in sizes]
    asked = resources(workers=workers, cpus_per_worker=cpus)
    fit = task_fit("t", asked, nodes, most_at_once=1)
    assert bool(fit.refusals) == (not _packs(workers, cpus, sizes))
    for option in what_would_fit(asked, nodes).removeprefix("what would fit: ").split(", or "):
        if ":" in option:
            name, value = option.split(": ")
            kind = float if name == "cpus_per_worker" else int
            changed = asked.model_copy(update={name: kind(value)})
            # shown with six digits
            if float(value) * 1000 % 1 == 0:
                assert not task_fit("t", changed, nodes, most_at_once=1).refusals


def _packs(workers: int, cpus: int, sizes: list[int]) -> bool:
    """By trying every assignment of workers to machines."""
    return any(
        all(cpus * chosen.count(n) <= size for n, size in enumerate(sizes))
        for chosen in itertools.product(range(len(sizes)), repeat=workers)
    )


def test_machines_as_a_person_writes_them():
    assert parse_cluster('{"CPU": 64, "GPU": 8}') == [{"CPU": 64, "GPU": 8}]
    assert parse_cluster('[{"CPU": 4, "count": 2}, {"CPU": 8}]') == [{"CPU": 4}] * 2 + [{"CPU": 8}]


@pytest.mark.parametrize(
    "text", ["", "64", "[]", "{}", '{"CPU": -1}', '{"CPU": true}', '{"CPU": "4"}', '[{"count": 2}]',
             '{"CPU": 4, "labels": "spot"}', '{"CPU": 4, "labels": {"a": 1}}', '{"labels": {}}',
             '{"CPU": 4, "count": 1.5}', '{"CPU": 4, "count": 0}', "[[]]", '{"CPU": NaN}']
)  # fmt: skip
def test_machines_that_are_none(text: str):
    with pytest.raises(CampaignError, match="--cluster must be like"):
        parse_cluster(text)


def test_machines_in_words():
    assert machines([{"CPU": 2, "GPU": 0}]) == "one machine (2 CPU)"
    assert machines([{"CPU": 4, "GPU": 1}] * 3) == "3 machines (4 CPU, 1 GPU each)"
    assert machines([{"CPU": 4}, {"CPU": 8}]) == "2 machines (the largest: 8 CPU)"


def test_what_an_autoscaler_may_add_is_a_machine_that_nobody_knows():
    nodes = [{"Resources": {"CPU": 4.0, "memory": 1e9, "driver": 64.0}, "Labels": {"pool": "spot"}}]
    there = {"CPU": 4.0, "memory": 1e9, "labels": {"pool": "spot"}}
    assert nodes_of_ray(nodes, {"CPU": 4.0}) == [there]
    found = nodes_of_ray(nodes, {"CPU": 20.0, "GPU": 2})
    assert found[1] == {"CPU": 16.0, "GPU": 2}


def test_this_machine_has_cpus_and_memory():
    node = this_node()
    assert node["CPU"] >= 1
    assert node["memory"] > 1e8

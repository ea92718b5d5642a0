"""Tasks that share a cluster, played through without one."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator import turns
from orchestrator.room import concurrent_trials
from orchestrator.spec import Resources
from orchestrator.spec_labels import matches
from orchestrator.turns import Machine, Turns


def machine(cpus: float = 4, gpus: float = 0, **labels: str) -> Machine:
    return Machine(amounts={"CPU": cpus, "GPU": gpus}, labels=labels)


def resources(**fields: Any) -> Resources:
    return Resources(**({"concurrent_trials": 100} | fields))


class Played:
    """What starts when, if trial i of a task takes so long."""

    def __init__(
        self,
        tasks: Mapping[str, Resources],
        seconds: Mapping[str, Sequence[float]],
        machines: Sequence[Machine],
    ) -> None:
        self.tasks, self.machines = tasks, machines
        self.turns = Turns(tasks)
        self.starts: list[tuple[float, str]] = []
        self.running: Counter[str] = Counter()
        self.given = dict.fromkeys(tasks, 0.0)
        self.left = {task: len(each) for task, each in seconds.items()}
        self.ends: list[tuple[float, str]] = []
        self.now = 0.0
        lasts = {f"{task} {i}": s for task, each in seconds.items() for i, s in enumerate(each)}
        for task, each in seconds.items():
            self.turns.wait(task, [f"{task} {i}" for i in range(len(each))])
        while True:
            while (task := self.turns.next(machines)) is not None:
                trial = self.turns.start(task, machines)
                self.check_nobody_is_passed_over(task)
                self.starts.append((self.now, trial))
                self.running[task] += 1
                self.left[task] -= 1
                self.given[task] += self.weight(task)
                heapq.heappush(self.ends, (self.now + lasts[trial], trial))
                self.check_nothing_is_given_twice()
            if not self.ends:
                break
            self.now, trial = heapq.heappop(self.ends)
            self.turns.over(trial)
            self.running[trial.split()[0]] -= 1
        assert len(self.starts) == len(lasts), "each trial starts once"
        assert not any(self.turns.busy(task) for task in tasks)

    def weight(self, task: str) -> float:
        takes, parts = self.tasks[task], list[float]()
        for kind, each in (("CPU", takes.cpus_per_worker), ("GPU", takes.gpus_per_worker)):
            there = sum(machine.amounts[kind] for machine in self.machines)
            parts.append(min(1.0, takes.workers * each / there) if there else float(each > 0))
        return max(parts)

    def check_nobody_is_passed_over(self, chosen: str) -> None:
        """Before a start: who could have run, if others had not, is not far behind."""
        if not self.running.total() or any(takes.labels for takes in self.tasks.values()):
            return
        for task, takes in self.tasks.items():
            there = self.there()
            cpus, gpus = (
                takes.workers * each for each in (takes.cpus_per_worker, takes.gpus_per_worker)
            )
            fits = cpus <= there["CPU"] and gpus <= there["GPU"]
            if fits and self.left[task] and not self.running[task]:
                behind = self.given[chosen] - self.given[task]
                assert behind < turns.AHEAD * self.weight(task) + 1e-6

    def there(self) -> dict[str, float]:
        return {k: sum(each.amounts[k] for each in self.machines) for k in ("CPU", "GPU")}

    def check_nothing_is_given_twice(self) -> None:
        assert self.turns.running == self.running.total() <= self.turns.most
        for task, takes in self.tasks.items():
            assert self.running[task] <= takes.concurrent_trials
        if self.running.total() == 1:
            return  # whatever the machines say
        for kind, field in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
            for labels in [{}, *(takes.labels for takes in self.tasks.values())]:
                there = sum(
                    each.amounts[kind] for each in self.machines if matches(labels, each.labels)
                )
                held = sum(
                    self.running[task] * takes.workers * getattr(takes, field)
                    for task, takes in self.tasks.items()
                    if not labels or takes.labels == labels
                )
                assert held <= there + 1e-6

    def order(self) -> str:
        return "".join(trial[0] for _, trial in self.starts)

    def began(self, task: str) -> list[float]:
        return [when for when, trial in self.starts if trial.startswith(task)]


def test_on_one_place_tasks_take_turns():
    one = resources(concurrent_trials=1)
    played = Played({"a": one, "b": one}, {"a": [1, 1, 1], "b": [1, 1, 1, 1]}, [machine()])
    assert played.order() == "abababb"


def test_trials_of_two_tasks_fill_a_cluster():
    both = {"a": resources(), "b": resources()}
    played = Played(both, {"a": [9] * 6, "b": [9] * 6}, [machine(4), machine(4)])
    assert Counter(trial[0] for when, trial in played.starts if when == 0) == {"a": 4, "b": 4}
    # and nobody waits for the last trial of the other
    assert max(when for when, _ in played.starts) == 9


def test_a_task_without_trials_leaves_all_to_the_other():
    played = Played({"a": resources(), "b": resources()}, {"a": [1] * 4, "b": []}, [machine(4)])
    assert played.began("a") == [0] * 4


def test_small_trials_run_side_by_side_between_large_ones():
    tasks = {"large": resources(workers=4), "small": resources(workers=1)}
    played = Played(tasks, {"large": [5, 5], "small": [5] * 8}, [machine(4)])
    # four small ones weigh as much as a large one, and may get ahead by two of it
    assert played.began("large") == [0, 15]
    assert played.began("small") == [5] * 4 + [10] * 4


def test_a_large_trial_does_not_wait_for_as_long_as_there_are_small_ones():
    tasks = {"large": resources(workers=4), "small": resources(workers=1)}
    played = Played(tasks, {"small": [3, 4, 5, 6] * 50, "large": [1] * 9}, [machine(4)])
    began = [0.0, *played.began("large")]
    # small ones that weigh as much as two of it, one more, and those that still run
    longest = 6 * turns.AHEAD + 6 + 6 + 1
    assert max(after - before for before, after in itertools.pairwise(began)) < longest


@pytest.mark.parametrize(("ahead", "idle", "minutes"), [(0, 0.11, 4), (2, 0.07, 7), (4, 0.03, 10)])
def test_a_cluster_is_not_set_free_for_each_large_trial(
    monkeypatch: pytest.MonkeyPatch, ahead: int, idle: float, minutes: int
):
    """What the default weighs: less that stands idle against large trials that wait longer."""
    monkeypatch.setattr(turns, "AHEAD", ahead)
    draw, tasks = random.Random(1), {"large": resources(workers=8), "small": resources(workers=1)}
    seconds = {
        "large": [draw.uniform(60, 120) for _ in range(20)],
        "small": [draw.uniform(60, 120) for _ in range(160)],
    }
    played = Played(tasks, seconds, [machine(8)])
    work = 8 * sum(seconds["large"]) + sum(seconds["small"])
    assert round(1 - work / (8 * played.now), 2) == idle
    waits = [after - before for before, after in itertools.pairwise(played.began("large"))]
    assert round(max(waits) / 60) == minutes


def test_a_task_that_asked_for_nothing_has_missed_nothing():
    turns = Turns({"a": resources(concurrent_trials=1), "b": resources(concurrent_trials=1)})
    here = [machine()]
    turns.wait("a", [f"a{i}" for i in range(20)])
    for _ in range(10):
        assert turns.next(here) == "a"
        turns.over(turns.start("a", here))
    turns.wait("b", [f"b{i}" for i in range(10)])
    order = ""
    for _ in range(6):
        task = turns.next(here)
        assert task is not None
        turns.over(turns.start(task, here))
        order += task
    assert order.count("b") == 3


def test_machines_with_a_label_are_kept_for_who_needs_them():
    tasks = {
        "any": resources(gpus_per_worker=1, cpus_per_worker=0.1),
        "fast": resources(gpus_per_worker=1, cpus_per_worker=0.1, labels={"gpu": "H100"}),
    }
    nodes = [machine(4, 4, gpu="A100"), machine(4, 2, gpu="H100")]
    played = Played(tasks, {"any": [9] * 20, "fast": [1] * 6}, nodes)
    # one of any task may be where the others must
    assert played.began("fast")[0] == 0


def test_machines_apart_do_not_wait_for_each_other():
    tasks = {
        "old": resources(gpus_per_worker=1, cpus_per_worker=0.1, labels={"gpu": "A100"}),
        "new": resources(gpus_per_worker=1, cpus_per_worker=0.1, labels={"gpu": "H100"}),
    }
    nodes = [machine(8, 1, gpu="A100"), machine(8, 7, gpu="H100")]
    played = Played(tasks, {"old": [9] * 3, "new": [1] * 70}, nodes)
    # a full machine of one is no reason for the other to wait
    assert played.began("new") == [float(i // 7) for i in range(70)]


def test_machines_that_may_come_count():
    turns = Turns({"a": resources(gpus_per_worker=1)})
    turns.wait("a", ["first", "second"])
    grown = [machine(2, 1), Machine(amounts={"CPU": 2, "GPU": 1}, anything=True)]
    assert turns.start("a", grown) == "first"
    assert turns.next([machine(2, 1)]) is None
    assert turns.next(grown) == "a"


def test_an_elastic_trial_takes_what_is_left():
    turns = Turns({"a": resources(workers=4, min_workers=2)})
    turns.wait("a", ["first", "second", "third"])
    here = [machine(7)]
    turns.start("a", here)
    assert turns.next(here) == "a"
    turns.start("a", here)
    assert turns.next(here) is None


def test_without_machines_one_starts_and_waits_for_them():
    turns = Turns({"a": resources(), "b": resources()})
    turns.wait("b", ["one", "two"])
    assert turns.next([]) == "b"
    turns.start("b", [])
    assert turns.next([]) is None


@pytest.mark.parametrize("elastic", [None, 1, 2, 3])
@given(
    cpus=st.integers(1, 40),
    gpus=st.integers(0, 9),
    workers=st.integers(3, 6),
    cpus_per_worker=st.sampled_from([0.1, 0.5, 1, 3]),
    gpus_per_worker=st.sampled_from([0, 0.07, 0.5, 1]),
    concurrent=st.integers(1, 12),
)
def test_one_task_has_as_many_as_fit(
    elastic: int | None,
    cpus: int,
    gpus: int,
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    concurrent: int,
):
    takes = Resources(
        workers=workers,
        min_workers=elastic,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        concurrent_trials=concurrent,
    )
    there = {"CPU": float(cpus), "GPU": float(gpus)}
    turns, here = Turns({"a": takes}), [Machine(amounts=there)]
    turns.wait("a", [str(number) for number in range(20)])
    while turns.next(here) is not None:
        turns.start("a", here)
    expected = concurrent_trials(takes, there)
    # places of a fraction: what a sum of floats lacks is none
    assume(abs(expected - turns.running) != 1 or cpus_per_worker != 0.1)
    assert turns.running == expected


@st.composite
def clusters(draw: st.DrawFn) -> tuple[dict[str, Resources], dict[str, list[float]], list[Machine]]:
    labels = st.sampled_from([{}, {"pool": "x"}, {"pool": "y"}])
    nodes = draw(
        st.lists(
            st.builds(
                lambda cpus, gpus, own: machine(cpus, gpus, **own),
                st.integers(1, 8),
                st.integers(0, 4),
                labels,
            ),
            min_size=1,
            max_size=4,
        )
    )
    tasks = {}
    for name in draw(st.sampled_from(["a", "ab", "abc"])):
        tasks[name] = Resources(
            workers=draw(st.integers(1, 4)),
            cpus_per_worker=draw(st.sampled_from([0.5, 1, 2])),
            gpus_per_worker=draw(st.sampled_from([0, 0, 1])),
            concurrent_trials=draw(st.integers(1, 6)),
            labels=draw(labels),
        )
    lasts = st.lists(st.integers(1, 9).map(float), max_size=12)
    return tasks, {name: draw(lasts) for name in tasks}, nodes


@given(clusters())
def test_nothing_is_given_twice_and_all_get_through(
    drawn: tuple[dict[str, Resources], dict[str, list[float]], list[Machine]],
):
    Played(*drawn)

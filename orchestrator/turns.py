"""Whose trial is next: how the tasks of a campaign share a cluster.

A trial weighs the largest part that it takes of any resource of the cluster, its dominant share
(Ghodsi et al. 2011, "Dominant Resource Fairness", NSDI). The next one is of the task that was given
the least so far; not of the one that holds the least now, for then trials of half a machine would
run alone wherever another task's take a whole one.

Nothing here knows Ray: machines and trials are numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.spec import Resources
from orchestrator.spec_labels import matches

KINDS = ("CPU", "GPU")
AHEAD = 2
"""By how many of its trials others may get ahead of a task that finds no room, before they leave it
some. Nothing runs on what is set free for a large trial until there is enough of it. Played through
for equal parts of large and small trials (8 places, trials of 8 and of 1, 60 to 120 s each;
test_turns.py) the cluster stood idle for 11% of the time with 0, 7% with 2, 3% with 4; and from the
start of a large trial to the next one's were at most 4, 7 and 10 minutes."""
NEARLY = 1e-9
"""Of a place, that rounding may lack: ten workers of 0.1 CPUs fit one."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A node of the cluster."""

    amounts: Mapping[str, float]
    """`CPU` and `GPU`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    anything: bool = False
    """It may have any labels: an autoscaler will add it, or nobody has told them."""


@dataclass
class _Task:
    resources: Resources
    waiting: deque[str] = field(default_factory=deque)
    running: dict[str, int] = field(default_factory=dict)
    """Trial -> workers for which there was room when it started."""
    served: float = 0.0
    """Weights of all trials that were started."""

    def per_worker(self, kind: str) -> float:
        resources = self.resources
        return resources.cpus_per_worker if kind == "CPU" else resources.gpus_per_worker

    def holds(self, kind: str) -> float:
        return sum(self.running.values()) * self.per_worker(kind)

    def weight(self, workers: int, machines: Sequence[Machine]) -> float:
        """Of a trial with so many: its dominant share of the whole cluster, at most 1."""
        parts = [0.0]
        for kind in KINDS:
            amount = workers * self.per_worker(kind)
            there = sum(machine.amounts.get(kind, 0.0) for machine in machines)
            parts.append(amount / there if amount < there else float(amount > 0))
        return max(parts)


class Turns:
    """The trials of all tasks, by their keys: those that wait and those that run.

    Args:
        tasks: What a trial of each takes, in the order of the spec.
    """

    def __init__(self, tasks: Mapping[str, Resources]) -> None:
        self._tasks = {name: _Task(resources) for name, resources in tasks.items()}
        self.most = max((r.concurrent_trials for r in tasks.values()), default=1)
        """Trials that run at once, over all tasks."""
        self._level = 0.0
        """What the task had been given whose trial started last."""

    def wait(self, task: str, trials: Iterable[str]) -> None:
        """More trials of a task, to be started in this order."""
        one = self._tasks[task]
        if not self.busy(task):
            # it asked for nothing, so it has missed nothing
            one.served = max(one.served, self._level)
        one.waiting.extend(trials)

    def start(self, task: str, machines: Sequence[Machine]) -> str:
        """Take the next trial of a task.

        Args:
            task: As `next` said.
            machines: Of the cluster, now.
        """
        one = self._tasks[task]
        fewest, wanted = one.resources.fewest, one.resources.workers
        workers = max(fewest, min(wanted, self._places(one, machines)))
        trial = one.waiting.popleft()
        self._level = one.served
        one.running[trial] = workers
        one.served += one.weight(workers, machines)
        return trial

    def over(self, trial: str) -> None:
        """A trial no longer runs."""
        for task in self._tasks.values():
            task.running.pop(trial, None)

    @property
    def running(self) -> int:
        """Trials, of all tasks."""
        return sum(len(task.running) for task in self._tasks.values())

    def busy(self, task: str) -> bool:
        """Whether any of its trials waits or runs."""
        return bool(self._tasks[task].waiting or self._tasks[task].running)

    def next(self, machines: Sequence[Machine]) -> str | None:
        """The task whose trial may start now; None if none may.

        One that finds no room because of other tasks keeps those from its machines that are `AHEAD`
        of it: large trials would otherwise wait for as long as there are small ones. Without any
        trial on its way one starts, whatever machines say: Ray waits for those that come.

        Args:
            machines: Of the cluster, now.
        """
        if self.running >= self.most:
            return None
        kept: list[tuple[float, set[int]]] = []
        waiting = [name for name, task in self._tasks.items() if task.waiting]
        # sums of equal weights differ in their last bits
        waiting.sort(key=lambda name: round(self._tasks[name].served, 9))
        for name in waiting:
            task = self._tasks[name]
            if len(task.running) >= task.resources.concurrent_trials:
                continue
            pool = _pool(task.resources, machines)
            if any(pool & theirs and task.served > until - NEARLY for until, theirs in kept):
                continue
            fewest = task.resources.fewest
            if self._places(task, machines) >= fewest:
                return name
            if self._places(task, machines, alone=True) >= fewest:
                kept.append((task.served + AHEAD * task.weight(fewest, machines), pool))
        return waiting[0] if waiting and not self.running else None

    def _places(self, task: _Task, machines: Sequence[Machine], alone: bool = False) -> int:
        """Further workers of a task for which there is room.

        Args:
            task: Of this object.
            machines: Of the cluster.
            alone: If only its own trials were there.
        """
        pool, places = _pool(task.resources, machines), math.inf
        for kind in KINDS:
            if not (each := task.per_worker(kind)):
                continue
            free = _sum(pool, kind, machines)
            for other in self._tasks.values():
                if other is task or not alone:
                    shared = pool & _pool(other.resources, machines)
                    # at worst they are on the machines that both may have
                    free -= min(other.holds(kind), _sum(shared, kind, machines))
            places = min(places, math.floor(free / each + NEARLY))
        return int(max(0, places)) if places < math.inf else 0


def _pool(resources: Resources, machines: Sequence[Machine]) -> set[int]:
    """Indices of the machines that a task may have."""
    return {
        index
        for index, machine in enumerate(machines)
        if machine.anything or matches(resources.labels, machine.labels)
    }


def _sum(pool: set[int], kind: str, machines: Sequence[Machine]) -> float:
    return sum(machines[index].amounts.get(kind, 0.0) for index in pool)

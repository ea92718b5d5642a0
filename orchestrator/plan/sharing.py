"""What several tasks come to that share machines: how long they train, and what is on its way."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from orchestrator.plan.figures import Range
from orchestrator.plan.fit import Node, TaskFit
from orchestrator.spec import Resources
from orchestrator.turns import KINDS, Machine, Turns

Rounds = Sequence[Sequence[Range]]
"""Seconds of a task's trials, round by round."""


def shared_makespan(
    rounds: Mapping[str, Rounds], resources: Mapping[str, Resources], nodes: Iterable[Node]
) -> Range:
    """From the first start to the last end of all trainings, in the order of the campaign itself.

    Args:
        rounds: Of each task; trials of a round begin in order, and the next round when all of them
            are over.
        resources: Of a trial of each task.
        nodes: The machines.
    """
    machines = alike(nodes)

    def end(choose: Callable[[Range], float]) -> float:
        turns = Turns(resources)
        left = {task: deque(each) for task, each in rounds.items()}
        lasts: dict[str, float] = {}
        now, ends = 0.0, list[tuple[float, str]]()
        while True:
            for task, waiting in left.items():
                while waiting and not turns.busy(task):
                    trials = waiting.popleft()
                    keys = [f"{task} {len(waiting)} {index}" for index in range(len(trials))]
                    lasts |= zip(keys, map(choose, trials), strict=True)
                    turns.wait(task, keys)
            while (chosen := turns.next(machines)) is not None:
                trial = turns.start(chosen, machines)
                heapq.heappush(ends, (now + lasts[trial], trial))
            if not ends:
                return now
            now, trial = heapq.heappop(ends)
            turns.over(trial)

    return Range(value=end(lambda s: s.value), low=end(lambda s: s.low), high=end(lambda s: s.high))


def alike(nodes: Iterable[Node]) -> list[Machine]:
    """Machines with the same labels as one; without any, a node may have those that are needed."""
    sums: dict[tuple[tuple[str, str], ...] | None, dict[str, float]] = {}
    for node in nodes:
        labels = node.get("labels")
        key = None if labels is None else tuple(sorted(labels.items()))
        amounts = sums.setdefault(key, dict.fromkeys(KINDS, 0.0))
        for kind in KINDS:
            amounts[kind] += node.get(kind, 0.0)
    return [
        Machine(amounts=amounts, labels=dict(key or ()), anything=key is None)
        for key, amounts in sums.items()
    ]


def passing_bytes(
    each: Mapping[str, int], resources: Mapping[str, Resources], fits: Sequence[TaskFit]
) -> int:
    """Of the largest trainings that may run at once.

    Args:
        each: Bytes of the largest training of each task on its way.
        resources: Of a trial of each task.
        fits: How the tasks fit, each for itself.
    """
    most = max((takes.concurrent_trials for takes in resources.values()), default=0)
    alone = [fit.side_by_side * each[fit.task] for fit in fits]
    together = sorted(each[fit.task] for fit in fits for _ in range(fit.side_by_side))
    return max(max(alone, default=0), sum(together[-most:]) if most else 0)

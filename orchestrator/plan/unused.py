"""What a spec asks for without use, or leaves lying: told before the hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.plan.fit import Node, TaskFit
from orchestrator.plan.work import TaskWork
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.wording import plural

MUCH = 0.15
"""Part of the places for trials that stand idle, from which on it is told."""


def unused_resources(
    spec: CampaignSpec, fits: Sequence[TaskFit], nodes: Sequence[Node]
) -> Iterator[str]:
    """CPUs and GPUs that no trial of any task takes."""
    for name, field in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        there = sum(node.get(name, 0) for node in nodes)
        each = []
        for task, fit in zip(spec.tasks, fits, strict=True):
            resources = spec.resources_of(task)
            each += fit.side_by_side * [resources.workers * getattr(resources, field)]
        # of all tasks, which run side by side
        most = max(spec.resources_of(task).concurrent_trials for task in spec.tasks)
        taken = min(there, sum(sorted(each)[-most:]))
        # what is less than a worker is no place for another
        if there - taken >= 1:
            yield (
                f"{there - taken:g} of {there:g} {name}s are idle while trials run: raise workers, "
                f"{field} or concurrent_trials"
            )


def unused_of_search(spec: CampaignSpec, task: AnyTask, work: TaskWork) -> Iterator[str]:
    """Of one task's trials."""
    search = spec.search
    if search.tune_at is not None and (
        others := [d for d in search.density if d != search.tune_at]
    ):
        shown = ", ".join(f"{density:g}" for density in others)
        yield (
            f"task {task.name}: nothing is tuned at density {shown}: they take the values of the "
            f"best draw at {search.tune_at:g}"
        )
    draws = Counter((trial.name.split("density=")[0], trial.density) for trial in work.rounds[0])
    searched = bool(search.fields) or any(m.searched for m in search.methods.values())
    asked = max(
        [search.trials_per_density, *(m.trials_per_density or 0 for m in search.methods.values())]
    )
    if searched and asked == 1:
        yield (
            f"task {task.name}: fields are searched with one draw per density, so no two values "
            "are compared: raise trials_per_density"
        )
    if not searched and asked > 1:
        yield (
            f"task {task.name}: trials_per_density is {asked} and nothing is searched: equal draws "
            "are one trial"
        )
    elif asked > 1 and draws and max(draws.values()) < asked:
        yield (
            f"task {task.name}: {asked} draws per density were asked for, the lists of values have "
            f"{plural(max(draws.values()), 'different one')}"
        )


def unused_of_measure(spec: CampaignSpec, task: AnyTask, longest: int) -> Iterator[str]:
    """Of the speed measurements."""
    if spec.measure.length > longest:
        yield (
            f"task {task.name}: measure.length {spec.measure.length} is cut to {longest}, the "
            "task's longest input"
        )


def unused_places(task: AnyTask, work: TaskWork, fit: TaskFit, idle: float) -> Iterator[str]:
    """Places for trials that no trial takes."""
    largest = max(map(len, work.rounds), default=0)
    asked = work.side_by_side
    if largest < asked:
        yield (
            f"task {task.name}: concurrent_trials is {asked}, and no round has more than "
            f"{plural(largest, 'trial')}"
        )
    elif fit.side_by_side > 1 and idle >= MUCH:
        yield (
            f"task {task.name}: {idle:.0%} of the time of {fit.side_by_side} places is spent "
            "waiting for the last trials of a round"
        )

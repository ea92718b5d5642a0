"""Whether trials find room on machines, side by side and without waiting for each other for ever.

Ray Train places the workers of a trial as one group, each worker whole on one machine; a trial
whose group finds no room is given up after a few minutes. So what counts is how many workers fit on
each machine, not the sum of the machines' resources.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import CampaignError
from orchestrator.machines import is_amount
from orchestrator.room import concurrent_trials, having
from orchestrator.spec import Resources
from orchestrator.spec_labels import matches
from orchestrator.turns import NEARLY
from orchestrator.wording import count, plural

Node = Mapping[str, Any]
"""A machine's resources: `CPU`, `GPU`, and `memory` in bytes where it is known; `labels` where they
are: without, it may have any."""


class DoesNotFit(CampaignError):
    """A campaign that could never run there."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFit:
    """One task on some machines."""

    task: str
    places: int
    """Workers that find room at once."""
    side_by_side: int
    """Trials that find room at once, and no more than the spec asks for."""
    started: int
    """Trials that `lowrank run` will start at once: it looks at the sum of all machines."""
    refusals: list[str] = field(default_factory=list)
    """Why it cannot run, each with what would fit."""
    warnings: list[str] = field(default_factory=list)


def parse_cluster(text: str) -> list[Node]:
    """Machines as a person writes them: one, or a list.

    Args:
        text: `{"CPU": 64, "GPU": 8}`, or `[{"CPU": 16, "GPU": 4}, {"CPU": 32}]`; `count` stands
            for several alike, and `labels` are those of the node: `{"pool": "spot"}`.

    Raises:
        CampaignError: It is something else.
    """
    rule = (
        '--cluster must be like {"CPU": 64, "GPU": 8}, or a list of machines '
        f'[{{"CPU": 16, "GPU": 4, "count": 2, "labels": {{"pool": "spot"}}}}], got {text[:200]}'
    )
    try:
        found = json.loads(text)
    except ValueError:
        raise CampaignError(rule) from None
    nodes: list[Node] = []
    for node in found if isinstance(found, list) else [found]:
        if not isinstance(node, dict):
            raise CampaignError(rule)
        labels = {"labels": node.pop("labels")} if "labels" in node else {}
        if not all(map(is_amount, node.values())) or not all(map(_are_labels, labels.values())):
            raise CampaignError(rule)
        number = node.pop("count", 1)
        if not node or number != int(number) or not 1 <= number <= 100_000:
            raise CampaignError(rule)
        nodes += [node | labels] * int(number)
    if not nodes:
        raise CampaignError(rule)
    return nodes


def _are_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def task_fit(
    task: str,
    resources: Resources,
    nodes: Sequence[Node],
    most_at_once: int,
    memory_bytes: int = 0,
) -> TaskFit:
    """How a task's trials fit.

    Args:
        task: Its name.
        resources: Of one trial.
        nodes: The machines.
        most_at_once: Trials of its largest round.
        memory_bytes: Of a worker at its peak; 0 if that is not known.
    """
    needs = worker_needs(resources, memory_bytes)
    nodes = [
        node for node in nodes if "labels" not in node or matches(resources.labels, node["labels"])
    ]
    places = sum(places_on(node, needs) for node in nodes)
    fits = places // resources.fewest
    wanted = min(resources.concurrent_trials, most_at_once)
    sums = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    started = min(concurrent_trials(resources, sums), most_at_once)
    fit = TaskFit(task=task, places=places, side_by_side=max(1, min(wanted, fits)), started=started)
    if fits < 1:
        where = f"{machines(nodes)}{having(resources.labels)}"
        fit.refusals.append(
            f"task {task}: one trial needs {_workers(resources.fewest, needs)}, there is room for "
            f"{places} on {where}; {what_would_fit(resources, nodes, memory_bytes)}"
        )
    elif started > fits:
        without_memory = sum(places_on(node, worker_needs(resources, 0)) for node in nodes)
        because = (
            f"{plural(places, 'worker')} fit, counted machine by machine"
            if without_memory // resources.fewest < started
            else f"memory is for {plural(places, 'worker')} of {count(memory_bytes, 'B')}"
        )
        fit.warnings.append(
            f"task {task}: {started} trials would start side by side, and {fits} have room "
            f"({because}): set concurrent_trials to {fits}"
        )
    return fit


def worker_needs(resources: Resources, memory_bytes: int = 0) -> dict[str, float]:
    """Of one worker."""
    needs: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        needs["GPU"] = resources.gpus_per_worker
    if memory_bytes:
        needs["memory"] = memory_bytes
    return needs


def places_on(node: Node, needs: Mapping[str, float]) -> int:
    """Workers for which a machine has room; a machine whose memory is not known has enough."""
    rooms: list[int] = [
        math.floor(node.get(name, 0) / amount + NEARLY)
        for name, amount in needs.items()
        if name != "memory" or "memory" in node
    ]
    return min(rooms)


def what_would_fit(resources: Resources, nodes: Sequence[Node], memory_bytes: int = 0) -> str:
    """The nearest settings that have room, or the machines that would."""
    options = list(_options(resources, nodes, memory_bytes))
    needs = worker_needs(resources, memory_bytes)
    room = f"machines{having(resources.labels)} with room for"
    options.append(f"{room} {_workers(resources.fewest, needs)}")
    return "what would fit: " + ", or ".join(options)


def _options(resources: Resources, nodes: Sequence[Node], memory_bytes: int) -> Iterator[str]:
    places = sum(places_on(node, worker_needs(resources, memory_bytes)) for node in nodes)
    if places:
        yield f"workers: {places}"
    for name, field_name in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        asked = getattr(resources, field_name)
        # the most that a worker may have is a machine's share for some number of workers
        shares = {
            node.get(name, 0) / number
            for node in nodes
            for number in range(1, resources.fewest + 1)
        }
        for share in sorted((s for s in shares if 0 < s < asked), reverse=True):
            changed = resources.model_copy(update={field_name: share})
            needs = worker_needs(changed, memory_bytes)
            if sum(places_on(node, needs) for node in nodes) >= resources.fewest:
                yield f"{field_name}: {share:g}"
                break
    if resources.gpus_per_worker and not any(node.get("GPU") for node in nodes):
        yield "gpus_per_worker: 0"


def machines(nodes: Sequence[Node]) -> str:
    """`2 machines (16 CPU, 4 GPU each)`, or the sum of unlike ones."""
    names = [name for name in ("CPU", "GPU", "memory") if any(node.get(name) for node in nodes)]

    def amounts(node: Node) -> str:
        return ", ".join(_amount(name, node.get(name, 0)) for name in names)

    if not nodes:
        return "no machine"
    if len(nodes) == 1:
        return f"one machine ({amounts(nodes[0])})"
    if all(amounts(node) == amounts(nodes[0]) for node in nodes):
        return f"{len(nodes)} machines ({amounts(nodes[0])} each)"
    return (
        f"{len(nodes)} machines (the largest: {amounts(max(nodes, key=lambda n: n.get('CPU', 0)))})"
    )


def _workers(number: int, needs: Mapping[str, float]) -> str:
    amounts = ", ".join(_amount(name, amount) for name, amount in needs.items())
    return f"{plural(number, 'worker')} of {amounts}"


def _amount(name: str, amount: float) -> str:
    return f"{count(amount, 'B')} memory" if name == "memory" else f"{amount:g} {name}"

"""The machines of a cluster: what they have, what they may become, and waiting for them."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from orchestrator.errors import CampaignError
from orchestrator.room import check_fits, having
from orchestrator.spec import Resources
from orchestrator.spec_labels import matches
from orchestrator.turns import KINDS, Machine

CAPACITY_ENV = "LOWRANK_CLUSTER_CAPACITY"
"""What a cluster's autoscaler may grow to, as JSON such as `{"CPU": 64, "GPU": 8}`. Ray tells only
what is there now, and trials that wait for nodes are what makes an autoscaler add some."""

LOOK_EVERY_S = 2.0
"""Between two looks for machines that are waited for."""


def available(labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All that the cluster has; with labels, of what workers take that of the nodes which have
    them."""
    import ray

    there = dict(ray.cluster_resources())
    if labels:
        nodes = [node["Resources"] for node in nodes_with(labels)]
        there |= {name: sum(node.get(name, 0.0) for node in nodes) for name in KINDS}
    return capacity(there) if os.environ.get("RAY_ADDRESS") else there


def groups(labels: Collection[str]) -> list[Machine]:
    """The nodes of the cluster, those that are alike in one, and what an autoscaler may add.

    Args:
        labels: Keys of the labels by which they are told apart.
    """
    found: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for node in nodes_with({}):
        own = node.get("Labels") or {}
        amounts = found.setdefault(tuple((k, own[k]) for k in sorted(labels) if k in own), {})
        for kind in KINDS:
            amounts[kind] = amounts.get(kind, 0.0) + node["Resources"].get(kind, 0.0)
    there = [Machine(amounts=amounts, labels=dict(own)) for own, amounts in found.items()]
    if os.environ.get("RAY_ADDRESS"):
        sums = {kind: sum(machine.amounts[kind] for machine in there) for kind in KINDS}
        may_be = capacity(sums)
        more = {kind: may_be[kind] - amount for kind, amount in sums.items()}
        if any(more.values()):
            there.append(Machine(amounts=more, anything=True))
    return there


def nodes_with(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """That are alive and have the labels."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"]]
    return [node for node in alive if matches(labels, node.get("Labels") or {})]


def capacity(there: dict[str, Any]) -> dict[str, Any]:
    """What is there, or may be there once the autoscaler has added nodes.

    Raises:
        CampaignError: LOWRANK_CLUSTER_CAPACITY is not what it must be.
    """
    text = os.environ.get(CAPACITY_ENV)
    if not text:
        return there
    rule = f'{CAPACITY_ENV} must be like {{"CPU": 64, "GPU": 8}}, got {text[:200]}'
    try:
        most = json.loads(text)
    except ValueError:
        raise CampaignError(rule) from None
    if not isinstance(most, dict) or not all(is_amount(amount) for amount in most.values()):
        raise CampaignError(rule)
    return there | {name: max(amount, there.get(name, 0)) for name, amount in most.items()}


def is_amount(value: Any) -> bool:
    """Whether somebody wrote how much there is of a resource."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < math.inf


def wait_to_fit(resources: Resources, task: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Wait for machines if no trial fits the cluster that RAY_ADDRESS names: they come and go.

    Returns:
        The cluster's resources now.

    Raises:
        CampaignError: As by `check_fits`, after `wait_minutes`; on this machine alone at once, for
            nothing will come.
    """
    deadline, told = time.monotonic() + 60 * resources.wait_minutes, False
    while True:
        try:
            there = available(resources.labels)
            check_fits(resources, there, task)
            return there
        except CampaignError as error:
            if not os.environ.get("RAY_ADDRESS") or time.monotonic() >= deadline:
                raise
            if not told:
                told = True
                say(f"{error}; machines are waited for, {resources.wait_minutes:g} minutes at most")
        time.sleep(LOOK_EVERY_S)


def run_alone(
    function: Callable[..., Any], *args: Any, labels: Mapping[str, str] | None = None
) -> Any:
    """Run a function with a whole node to itself: every CPU, and a GPU where nodes have one.

    Args:
        function: Runs there.
        args: Its arguments.
        labels: Of the node.
    """
    import ray

    nodes = [node["Resources"] for node in nodes_with(labels or {})]
    with_cpu = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not with_cpu:
        raise CampaignError(
            f"no node of the cluster{having(labels or {})} has a CPU to measure speed on; keep at "
            "least one worker (minReplicas), and the same command goes on"
        )
    best = max(with_cpu, key=lambda node: (node.get("GPU", 0), node["CPU"]))
    remote = ray.remote(function).options(
        num_cpus=best["CPU"],
        num_gpus=1 if best.get("GPU", 0) >= 1 else 0,
        max_retries=1,
        label_selector=dict(labels or {}),
    )
    return ray.get(remote.remote(*args))

"""The machines that a campaign is to run on: this one, a cluster, or what a person says."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.plan.fit import Node, parse_cluster

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def nodes_of(cluster: str | None) -> list[Node]:
    """Machines, by what is known of them.

    Args:
        cluster: As `--cluster` has it; None asks the cluster that RAY_ADDRESS names, or takes
            this machine.

    Raises:
        CampaignError: The text or LOWRANK_CLUSTER_CAPACITY is not what it must be.
        ConnectionError: The cluster does not answer.
    """
    if cluster is not None:
        return parse_cluster(cluster)
    if os.environ.get("RAY_ADDRESS"):
        return _cluster_nodes()
    return [this_node()]


def this_node() -> Node:
    """This machine, as a local Ray would have it."""
    import torch

    found = {
        "CPU": len(os.sched_getaffinity(0)),
        "GPU": torch.cuda.device_count(),
    }
    if memory := memory_bytes():
        found["memory"] = memory
    return found


def memory_bytes() -> int:
    """Of this machine, or of the container; 0 if neither tells."""
    sizes = []
    with suppress(OSError, ValueError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # "max" is no number
        sizes.append(int(CGROUP_LIMIT.read_text(encoding="ascii")))
    return min(sizes, default=0)


def _cluster_nodes() -> list[Node]:
    from orchestrator import cluster

    with cluster.ray_session() as available:
        import ray

        cluster_nodes = [node for node in ray.nodes() if node["Alive"]]
        return nodes_of_ray(cluster_nodes, available)


def nodes_of_ray(found: list[dict[str, Any]], available: dict[str, Any]) -> list[Node]:
    """Ray's nodes, and one more for what the autoscaler may add, whose machines nobody knows yet.

    Args:
        found: As `ray.nodes` lists them.
        available: Resources that are there, or may be (`machines.capacity`).
    """
    names = ("CPU", "GPU", "memory")
    nodes: list[Node] = [
        {name: node["Resources"][name] for name in names if name in node["Resources"]}
        | {"labels": node.get("Labels") or {}}
        for node in found
    ]
    more = {
        name: available.get(name, 0) - sum(node.get(name, 0) for node in nodes)
        for name in ("CPU", "GPU")
    }
    if any(amount > 0 for amount in more.values()):
        nodes.append({name: max(0.0, amount) for name, amount in more.items()})
    return nodes

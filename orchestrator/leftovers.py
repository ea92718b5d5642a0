"""Frees the machines that a job which is over still holds on a Ray cluster.

Ray Train takes machines by placement groups, and has a helper that frees them when a
controller dies; but the helper hears of a group only when its workers run. A job that ends before
leaves machines taken until the cluster is started anew. So a campaign looks after its own jobs:
after each of its sessions, and before the next one for a driver that was killed; and a trial frees
what controllers left that died before their workers ran.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

SETTLED_S = 3.0
"""Processes of a job die within seconds after its driver; until then one of them may take
something."""
ORPHANED_S = 1.0
"""A controller that was killed is known to be dead well within that."""
LOOK_EVERY_S = 0.2
"""Between two looks for groups."""
MOST = 10_000
"""Of what the state API lists at once; its own limit."""


def remember(path: Path, job: str, head: str) -> None:
    """Write down the job that is about to take machines, for the case that its driver dies.

    Args:
        path: The note.
        job: Its id on the cluster.
        head: Id of the cluster's head node: a cluster that is started anew counts its jobs from one
            again, and what has this id there is somebody else's.
    """
    path.write_text(json.dumps({"job": job, "head": head}), encoding="utf-8")


def remembered(path: Path, head: str) -> str | None:
    """The job that was written down on this cluster, if any."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return str(note["job"]) if note["head"] == head else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def free(job: str, settled_s: float = SETTLED_S) -> int:
    """Remove the placement groups of a job whose driver is gone.

    Call it connected to the cluster, as another job.

    Args:
        job: Its id on the cluster, as `ray.get_runtime_context().get_job_id()` gives it.
        settled_s: Looks again until nothing was found for so long.

    Returns:
        How many were removed; one that takes its time is asked again and counts once.

    Raises:
        RayStateApiException, ConnectionError: The cluster's dashboard does not answer.
    """
    return _remove_until_quiet(lambda: _groups(job), settled_s)


def free_orphans(settled_s: float) -> int:
    """Remove the placement groups of this job whose creator, an actor, is dead.

    Ray promises that such a group goes with its creator, and keeps it until the job is over.

    Args:
        settled_s: Looks again until nothing was found for so long: that an actor died is known
            a moment later.

    Returns:
        How many were removed.
    """
    return _remove_until_quiet(_orphans, settled_s)


def _remove_until_quiet(find: Callable[[], list[str]], settled_s: float) -> int:
    """Remove what is found, again and again until for so long nothing was; how many that were."""
    removed: set[str] = set()
    quiet_since = time.monotonic()
    while True:
        groups = find()
        for group in groups:
            _remove(group)
        removed.update(groups)
        if groups:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since >= settled_s:
            return len(removed)
        time.sleep(LOOK_EVERY_S)


def _orphans() -> list[str]:
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    # the state API leaves the creator out
    head = state._connect_and_get_accessor()

    def is_dead(actor: bytes) -> bool:
        if not actor or ray.ActorID(actor).is_nil():
            return False  # a driver's
        # not what the group says of it, which is so only once nobody has a handle of the actor
        info = head.get_actor_info(ray.ActorID(actor))
        return info is not None and ActorTableData.FromString(info).state == ActorTableData.DEAD

    groups = [PlacementGroupTableData.FromString(row) for row in head.get_placement_group_table()]
    return [
        group.placement_group_id.hex()
        for group in groups
        if group.creator_job_id == job
        and not group.is_detached
        and group.state != PlacementGroupTableData.REMOVED
        and is_dead(group.creator_actor_id)
    ]


def _groups(job: str) -> list[str]:
    from ray.util.state import list_placement_groups

    found = list_placement_groups(
        filters=[("creator_job_id", "=", job), ("state", "!=", "REMOVED")],
        detail=True,
        limit=MOST,
    )
    return [str(each.placement_group_id) for each in found]


def _remove(group: str) -> None:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))

"""A training with as many workers as there are machines for, within the range of the spec.

Ray Train decides when a running group is resized, and starts it anew for that: every worker ends,
and the new ones go on from the last state. So that this costs seconds and not what came since the
last state, the workers are given notice first, in the form that they know: as if a machine of
theirs were to be taken away. While there is room for too few workers, Ray's controller asks on for
ever and without a pause; here it rests between two looks, and gives up.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from orchestrator.bucket.kept import states_at
from orchestrator.errors import ClusterError
from orchestrator.snapshot import SnapshotStore
from orchestrator.spec import Resources

logger = logging.getLogger(__name__)

LONGEST_S = 60.0
"""For the state of a notice. A worker looks for notices every five seconds, and writing a state of
a billion parameters takes half a minute; what is not written by then is done again."""
LOOK_EVERY_S = 1.0
WAITING = ("InitializingState", "RestartingState", "ReschedulingState")
"""Of Ray's controller, while it has decided on no group."""


def num_workers(resources: Resources) -> int | tuple[int, int]:
    """As Ray's ScalingConfig takes it."""
    if resources.min_workers is None:
        return resources.workers
    return resources.min_workers, resources.workers


def callbacks(resources: Resources, states: str) -> list[Any]:
    """What an elastic training needs in Ray's controller; nothing for a fixed number of workers.

    Args:
        resources: Of the training.
        states: Place (`bucket.places`) of its states.
    """
    if resources.min_workers is None:
        return []
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class Elastic(ControllerCallback, WorkerGroupCallback):
        """Ray calls these in the controller's process; its loop stands still meanwhile."""

        def __init__(self) -> None:
            self.actors: list[Any] = []
            self.waits = _Waits(resources)

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.actors = [worker.actor for worker in worker_group.get_workers()]

        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            self.actors = []

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            if self.actors:
                logger.info("%d workers from now on", resize_decision.num_workers)
                save_first(self.actors, states_at(states))

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            names = type(previous_state).__name__, type(current_state).__name__
            self.waits.seen(names[0] == names[1] and names[1] in WAITING)

    return [Elastic()]


class _Waits:
    """For room for the fewest workers."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._since: float | None = None

    def seen(self, waiting: bool) -> None:
        """After each turn of the controller's loop.

        Raises:
            ClusterError: It has waited for as long as a trial waits for machines at all.
        """
        if not waiting:
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        minutes = self._resources.wait_minutes
        if now - self._since > 60 * minutes:
            raise ClusterError(
                f"room for {self._resources.min_workers} workers must come within "
                f"resources.wait_minutes, got none for {minutes:g} minutes"
            )
        time.sleep(LOOK_EVERY_S)


def save_first(actors: list[Any], states: SnapshotStore, longest_s: float = LONGEST_S) -> bool:
    """Have a running group write its state; whether it did.

    Args:
        actors: Ray Train's workers.
        states: Of the training.
        longest_s: How long it is waited for.
    """
    import ray
    from ray.train.v2.api.preemption import PreemptionInfo

    before = next(iter(states.steps()), 0)
    notice = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={})
    deadline = time.monotonic() + longest_s
    try:
        ray.get([actor.mark_preempt.remote(notice) for actor in actors], timeout=longest_s)
    except Exception as error:  # a worker that is dead or hangs: the group is started anew anyway
        logger.warning("no notice of the resize was given: %s", error)
        return False
    while time.monotonic() < deadline:
        if next(iter(states.steps()), 0) > before:
            return True
        time.sleep(LOOK_EVERY_S / 4)
    logger.warning(
        "no state was written within %g s: what came after step %d is done again", longest_s, before
    )
    return False

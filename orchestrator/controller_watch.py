"""Ends a training whose Ray Train controller stands still, so that the next attempt goes on.

A worker that hangs ends itself (`watchdog`), but only once it trains. While its group starts, the
controller asks each worker for this and that, and waits without a limit: a worker that is stopped
then, or a machine that freezes, would hold the trial for ever. So the trial's process listens to
the controller, which gives a sign at each turn of its loop. A turn is half a second, but for the
one that starts workers.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.leftovers import ORPHANED_S, free_orphans

logger = logging.getLogger(__name__)

LOOKS = 100
"""Within the limit, of a half hour as a rule; and signs come as often, but for the long turn."""

NOTE = "controller.txt"
"""Beside the notes of workers that hung."""

STAGES = {
    "SchedulingState": "starting its workers",
    "RunningState": "looking after its workers",
    "ShuttingDownState": "ending its workers",
}
"""Ray's names of a controller's state, in words."""


class Watch:
    """Acts when a sign stays the same for too long; a thread of this process.

    It counts its own looks, not the time: one that was frozen together with who gives the signs
    takes nobody's silence meanwhile for a fault.

    Args:
        limit_s: How long that is.
        sign: The last sign; None before the first. What it raises says that nobody could know.
        end: Called with the sign that stayed, and again each time the limit is over once more.
    """

    def __init__(
        self, limit_s: float, sign: Callable[[], str | None], end: Callable[[str | None], None]
    ) -> None:
        self._every_s, self._sign, self._end = limit_s / LOOKS, sign, end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        last, unchanged = None, 0
        while not self._over.wait(self._every_s):
            try:
                sign = self._sign()
            except Exception as error:
                logger.warning("no sign of the training can be read: %s", error)
                unchanged = 0
                continue
            unchanged = unchanged + 1 if sign == last else 0
            last = sign
            if unchanged >= LOOKS:
                self._end(sign)
                unchanged = 0


@contextmanager
def attended(minutes: float, folder: Path) -> Iterator[Any]:
    """Watch over the one training of this process, and free what it leaves taken if it fails.

    Args:
        minutes: How long a controller may stand still, besides Ray's own limit for the placement
            of workers: a cluster that is busy is nobody's fault.
        folder: Gets the note of a controller that was ended, beside those of workers.

    Yields:
        The callback that the training's `RunConfig` must have.
    """
    from orchestrator.controller_signs import Signs

    limit_s = 60 * minutes + _placement_s()
    signs = Signs(f"training-{uuid.uuid4().hex}", limit_s / LOOKS)

    def end(sign: str | None) -> None:
        stood = stage(sign)
        logger.warning("the training's controller stands still, %s: it is ended", stood)
        with suppress(OSError):  # a full disk: then only the log has it
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NOTE).write_text(f"{stood}\n", encoding="utf-8")
        _kill_controllers()

    # those of an attempt whose process was killed itself
    _free(0)
    try:
        with Watch(limit_s, signs.last, end):
            yield signs
    except Exception:
        # one that gave up may still live, and its workers' machines are freed when it is gone
        _kill_controllers()
        _free(ORPHANED_S)
        raise
    finally:
        with suppress(Exception):
            signs.forget()


def stage(sign: str | None) -> str:
    """Where a controller stood that gave this sign last."""
    state = "" if sign is None else sign.partition(" ")[2]
    return STAGES.get(state, f"in {state}" if state else "before its first turn")


def _placement_s() -> float:
    from ray.train.v2._internal.constants import (
        DEFAULT_WORKER_GROUP_START_TIMEOUT_S,
        WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    )

    limit = os.environ.get(WORKER_GROUP_START_TIMEOUT_S_ENV_VAR)
    return float(limit) if limit else DEFAULT_WORKER_GROUP_START_TIMEOUT_S


def _free(settled_s: float) -> None:
    try:
        if count := free_orphans(settled_s):
            logger.info("%d placement groups of dead controllers were freed", count)
    except Exception as error:  # the attempt's own error is what counts
        logger.warning("what dead controllers left taken is not known: %s", error)


def _kill_controllers() -> None:
    """Those that this process started; nobody else has a handle of them."""
    import ray
    from ray._private.worker import global_worker

    try:
        for actor in _controllers():
            global_worker.core_worker.kill_actor(ray.ActorID(actor), True)
    except Exception as error:  # asked for again by the watch; the attempt's own error counts
        logger.warning("a controller could not be ended: %s", error)


def _controllers() -> list[bytes]:
    """Ids of this process's controllers that are not dead."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    context = ray.get_runtime_context()
    me = bytes.fromhex(context.get_worker_id())
    job = ray.JobID.from_hex(context.get_job_id())
    rows = state._connect_and_get_accessor().get_actor_table(job, None)
    actors = [ActorTableData.FromString(row) for row in rows]
    return [
        actor.actor_id
        for actor in actors
        if actor.class_name == "TrainController"
        and actor.owner_address.worker_id == me
        and actor.state != ActorTableData.DEAD
    ]

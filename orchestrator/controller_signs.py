"""What a Ray Train controller tells of itself: `controller_watch` listens.

For processes that run Ray: this imports it.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.train.v2._internal.execution.callback import ControllerCallback

logger = logging.getLogger(__name__)

NAMESPACE = "lowrank"


class Signs(ControllerCallback):
    """A counter and the controller's state, in the store that Ray's head keeps for all processes:
    no file that both would have to see, and no method of a controller that is busy.

    Made in the process that starts the training, which reads it; it travels to the controller,
    which calls it at every turn of its loop.

    Args:
        key: Of this training alone.
        apart_s: No more than one sign in so many seconds, besides those of a new state.
    """

    def __init__(self, key: str, apart_s: float) -> None:
        self._key, self._apart_s = key, apart_s
        self._count, self._state, self._told_at = 0, "", 0.0

    def after_controller_start(self, train_run_context: Any) -> None:
        self._tell()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        before, self._state = self._state, type(current_state).__name__
        if self._state != before or time.monotonic() - self._told_at > self._apart_s:
            self._tell()

    def last(self) -> str | None:
        """The last sign; None as long as there was none."""
        value = _internal_kv_get(self._key, namespace=NAMESPACE)
        return None if value is None else value.decode()

    def forget(self) -> None:
        _internal_kv_del(self._key, namespace=NAMESPACE)

    def _tell(self) -> None:
        self._count, self._told_at = self._count + 1, time.monotonic()
        try:
            _internal_kv_put(self._key, f"{self._count} {self._state}", namespace=NAMESPACE)
        except Exception as error:  # whatever it is, a training that runs does not end for it
            logger.warning("no sign could be given: %s", error)

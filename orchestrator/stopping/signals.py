"""How a training hears that it is to stop: a text in the store that Ray's head keeps for all
processes, which its first worker asks for now and then. No file that both would have to see.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import asdict, dataclass

logger = logging.getLogger(__name__)

NAMESPACE = "lowrank"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """What a training is told."""

    rung: float
    reason: str


class Signals:
    """Of the trainings of one round; its keys are nobody else's, for a cluster outlives campaigns
    and two campaigns may train a model with the same key."""

    def __init__(self) -> None:
        self._prefix, self._sent = f"stop-{uuid.uuid4().hex}", list[str]()

    def key(self, model: str) -> str:
        """Where the training of a model is to look."""
        return f"{self._prefix}-{model}"

    def send(self, model: str, stop: Stop) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        self._sent.append(self.key(model))
        _internal_kv_put(self.key(model), json.dumps(asdict(stop)), namespace=NAMESPACE)

    def forget(self) -> None:
        """The round is over."""
        from ray.experimental.internal_kv import _internal_kv_del

        for key in self._sent:
            try:
                _internal_kv_del(key, namespace=NAMESPACE)
            except Exception as error:  # a head that is gone; nobody looks there again
                logger.warning("a signal could not be taken back: %s", error)
        self._sent.clear()


def heard(key: str) -> Stop | None:
    """What was sent there, in any process of the cluster; None if nothing was."""
    from ray.experimental.internal_kv import _internal_kv_get

    try:
        text = _internal_kv_get(key, namespace=NAMESPACE)
    except Exception as error:  # whatever it is, a training that runs does not end for it
        logger.warning("whether the training is to stop is not known: %s", error)
        return None
    return None if text is None else Stop(**json.loads(text))

"""One process at a time moves the aliases of a registered model.

MLflow has no transactions over several requests. What it does have is that of two processes which
create a registered model of one name, one is refused: so a model of a name derived from that of the
real one is the lock, for the fraction of a second that aliases take to move.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.errors import RegistryError

STALE_S = 60.0
"""A lock that the same owner holds for so long is of a process that died: four requests take about
a second, and less than this on a server that is busy."""
PAUSE_S = 0.2
"""Between two attempts."""
OWNER = "owner"

LONGEST = 200
"""Characters of the model's name in that of its lock; the database has room for 256."""


def lock_name(name: str) -> str:
    """Of the model that is there while aliases of `name` move."""
    return f"{name[:LONGEST]}.lock-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def alone(client: Any, name: str, stale_s: float = STALE_S) -> Iterator[Callable[[], None]]:
    """Hold the aliases of a model; waits for who holds them.

    Yields:
        Raises a RegistryError when called after another process took the lock for stale: asked
        before the last move, so that a process that slept for minutes changes nothing.
    """
    lock, owner = lock_name(name), uuid.uuid4().hex
    _take(client, lock, owner, f"held while aliases of {name} move", stale_s)

    def check() -> None:
        if _owner(client, lock) != owner:
            raise RegistryError(
                f"aliases of {name!r}: another process went on after this one had held them for "
                f"more than {stale_s:g} s; nothing more was moved, the same command does it again"
            )

    try:
        yield check
    finally:
        if _owner(client, lock) == owner:
            client.delete_registered_model(lock)


def _take(client: Any, lock: str, owner: str, text: str, stale_s: float) -> None:
    from mlflow.exceptions import MlflowException

    seen, since = None, time.monotonic()
    while True:
        try:
            client.create_registered_model(lock, tags={OWNER: owner}, description=text)
            return
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        holder = _owner(client, lock)
        if holder == owner:  # it was made, and the answer was lost
            return
        if holder != seen:
            seen, since = holder, time.monotonic()
        elif holder is not None and time.monotonic() - since > stale_s:
            with contextlib.suppress(MlflowException):
                client.delete_registered_model(lock)
            continue
        time.sleep(PAUSE_S)


def _owner(client: Any, lock: str) -> str | None:
    """Who holds a lock; None if nobody does."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(lock).tags).get(OWNER, "")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None

"""A tracking store that does not answer for a while: how that looks, and asking it again.

A server restarts, a database fails over, another process holds SQLite's lock: all of these pass.
Only what every one of them can do twice without harm is asked again by itself; what would leave
something behind twice, like a new run, is asked again as a whole by who looks first whether it is
there.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.errors import TrackingError, redact_uri
from orchestrator.interrupts import one_piece

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Between two questions: short for a lock, and no more than four a minute for a server that is
down; the pause doubles in between."""

MAKES_SOMETHING = frozenset(
    {"create_run", "create_experiment", "create_registered_model", "create_model_version"}
)
"""Methods of an MLflow client that leave a second thing behind when an answer was lost."""


class TrackingAway(TrackingError):
    """The store did not answer for as long as it was waited for. Nothing was refused: the same
    request can be made later."""


@dataclass(frozen=True)
class Patience:
    """Asks again while a store is away.

    Args:
        uri: For messages; passwords are hidden.
        seconds: How long to go on asking; 0 asks once.
        say: Hears of it when the waiting begins, and when it is over.
    """

    uri: str
    seconds: float = 0.0
    say: Callable[[str], None] = field(default=lambda text: None)

    def ask(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The result of a call that may be made twice.

        Raises:
            TrackingAway: The store was away all the time.
        """
        began, pause, waited = time.monotonic(), FIRST_PAUSE_S, False
        while True:
            try:
                with one_piece():
                    result = call(*args, **kwargs)
            except Exception as error:
                left = began + self.seconds - time.monotonic()
                if not is_away(error):
                    raise
                if left <= 0:
                    raise TrackingAway(unreachable(self.uri, error)) from error
                if not waited and pause > FIRST_PAUSE_S:
                    # a lock is gone before anyone has read of it
                    waited = True
                    self.say(
                        f"MLflow at {redact_uri(self.uri)} does not answer; it is asked again for "
                        f"{self.seconds / 60:g} minutes ({_reason(error)})"
                    )
                time.sleep(min(pause, left))
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if waited:
                    self.say(f"MLflow at {redact_uri(self.uri)} answers again")
                return result


class PatientClient:
    """An MLflow client whose questions are asked again while the store is away.

    Args:
        client: `MlflowClient`.
        patience: How long.
    """

    def __init__(self, client: Any, patience: Patience) -> None:
        self._client, self._patience = client, patience

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name in MAKES_SOMETHING or not callable(found):
            return found
        return functools.partial(self._patience.ask, found)


def is_away(error: BaseException) -> bool:
    """Whether an error means that the store did not answer, and not that it refused."""
    import requests
    from sqlalchemy.exc import InterfaceError, OperationalError

    if isinstance(error, TrackingAway):
        return True
    for each in _causes(error):
        # a URI that cannot be right is an error of requests, too
        if isinstance(each, requests.RequestException) and not isinstance(each, ValueError):
            return True
        if isinstance(each, OperationalError | InterfaceError | ConnectionError | TimeoutError):
            return True
        if getattr(each, "error_code", None) == "TEMPORARILY_UNAVAILABLE":
            return True
    return False


def unreachable(uri: str, error: Exception) -> str:
    """What a person is told of it, without passwords."""
    return f"tracking.uri: {redact_uri(uri)} cannot be reached: {_reason(error)}"


def _reason(error: Exception) -> str:
    """The first line of what the client said."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return redact_uri(first)[:300]


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__

"""Who moved what in the registry, when, and why: one tag of the registered model per event.

It is kept where the aliases are, so whoever sees the champion sees how it came there, whatever
became of the campaign's folder. An event is written before its alias moves: a process that dies in
between leaves an event that did not come to pass, which `trail` finds out, and never a move without
an event.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from orchestrator.wording import cut

PREFIX = "audit."
USER_ENV = "LOWRANK_USER"
"""Who is at work, where the account's name does not tell: in a container, in a pipeline."""

LONGEST_WHY = 1000
"""Characters; MLflow's database has room for 5,000 in a tag."""

Action = Literal["promote", "rollback", "refuse", "wait", "copy"]
MOVES = ("promote", "rollback")
"""What changes who is champion; the others are told of, too: a gate that failed, a model that waits
for a person's approval, a version that was copied from another model."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the trail."""

    when: str
    """ISO 8601 in UTC, with microseconds: unique, for one process at a time writes."""
    who: str
    action: Action
    version: str
    before: str | None
    """The champion until then."""
    why: str
    came_to_pass: bool = True
    """False of a move whose process died before the alias did move."""

    def tag(self) -> tuple[str, str]:
        """Key and value of the tag that holds it."""
        values = asdict(self)
        del values["came_to_pass"]
        return PREFIX + self.when, json.dumps(values, ensure_ascii=False)


def event(action: Action, version: str, before: str | None, why: str) -> Event:
    """Of now, by whoever runs this process."""
    return Event(
        # MLflow takes no plus sign in the name of a tag
        when=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        who=person(),
        action=action,
        version=version,
        before=before,
        why=cut(why, LONGEST_WHY),
    )


def person() -> str:
    """`LOWRANK_USER`, or the account's name."""
    given = os.environ.get(USER_ENV, "").strip()
    if given:
        return cut(given)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number that no name belongs to
        return f"uid {os.getuid()}"


def trail(tags: Mapping[str, Any], champion: str | None) -> list[Event]:
    """The events among a registered model's tags, oldest first.

    Args:
        tags: Of the registered model; what is not an event of ours is left out.
        champion: Who it is now: tells whether the last move came to pass.
    """
    found = [
        each
        for key, value in sorted(tags.items())
        if key.startswith(PREFIX) and (each := _read(str(value))) is not None
    ]
    return _checked(found, champion)


def _checked(events: Sequence[Event], champion: str | None) -> list[Event]:
    """The champion after a move is who every later event found in its place."""
    checked: list[Event] = []
    later = champion
    for each in reversed(events):
        done = each.action not in MOVES or each.version == later
        checked.append(replace(each, came_to_pass=done))
        later = each.before
    return checked[::-1]


def _read(text: str) -> Event | None:
    """Anyone may write tags: what does not look like an event is none."""
    try:
        found = Event(**json.loads(text))
    except (ValueError, TypeError):
        return None
    texts = (found.when, found.who, found.version, found.why)
    right = all(isinstance(each, str) for each in texts) and found.action in get_args(Action)
    return found if right and isinstance(found.before, str | None) else None

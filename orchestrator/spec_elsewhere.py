"""A spec that other machines will run: what of this machine must not be in it.

Paths are taken as the cluster will see them, so what must exist is checked there. A folder that is
only right here, and a password that the cluster would keep beside the job, are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import redact_uri
from orchestrator.spec import CampaignSpec
from orchestrator.spec_errors import Problem
from orchestrator.spec_paths import resolve_outputs
from orchestrator.spec_yaml import Document, Place

_USER_ALONE = re.compile(r"^(?!https?:)(?P<begin>[a-z][a-z0-9+.-]*://)[^/?#@:\s]+@", re.IGNORECASE)
"""`postgresql://mlflow@db`: a name, and the password comes from elsewhere. A user alone before a
web address may be a token."""


def left_to_the_cluster(document: Document, problems: list[Problem]) -> list[Problem]:
    """Problems less those of absolute paths, which the cluster may have and this machine not."""
    return [each for each in problems if not _is_absolute(_value(document.data, each.place))]


def problems_elsewhere(document: Document, spec: CampaignSpec) -> Iterator[Problem]:
    """What makes `spec`, valid here, unfit to be sent to other machines."""
    rule = "must be an absolute path, the same on every node of the cluster, got"
    if "://" not in spec.storage and not os.path.isabs(spec.storage):
        yield Problem(("storage",), f"{rule} {spec.storage}")
    here = resolve_outputs(spec).tracking
    for name in ("uri", "registry"):
        uri = getattr(spec.tracking, name)
        if getattr(here, name) != uri:  # it had to be made absolute
            yield Problem(("tracking", name), f"{rule} {uri}")
    for place, text in _texts(document.data, ()):
        if (shown := _without_secret(text)) is not None:
            yield Problem(
                place,
                "holds a user or password, which the cluster would keep beside the job; leave it "
                f"out and set it in the environment of the cluster's nodes, got {shown}",
            )


def _without_secret(text: str) -> str | None:
    """The text with its secret hidden; None if there is none."""
    plain = _USER_ALONE.sub(r"\g<begin>", text)
    return redact_uri(text) if redact_uri(plain) != plain else None


def _texts(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*place, index))


def _value(holder: Any, place: Place) -> Any:
    for key in place:
        try:
            holder = holder[key]
        except (KeyError, IndexError, TypeError):
            return None
    return holder


def _is_absolute(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)

"""Labels of nodes: what a spec may ask for, and which nodes have it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.spec_block import Block, PlacedErrors, rule

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_NAME}(?:\.{_NAME})*/)?{_NAME}")
_LIST = re.compile(rf"in\(\s*(?P<values>{_NAME}(?:\s*,\s*{_NAME}){{0,63}})\s*\)")
_VALUE = re.compile(_NAME)


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """Unchanged, once each is a name and a value as Ray's label selectors have them.

    Raises:
        PlacedErrors: Others, each at its own place.
    """
    errors = []
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            message = "a label's name is letters, digits, dots, dashes and underscores, after an "
            errors.append(
                rule((key[:60],), f"{message}optional prefix and a slash, got {key!r:.60}")
            )
        bare = value.removeprefix("!")
        if not (_VALUE.fullmatch(bare) or _LIST.fullmatch(bare)):
            message = "must be a value, !value, in(one, other) or !in(one, other)"
            errors.append(rule((key[:60],), f"{message}, got {value!r:.60}"))
    if errors:
        raise PlacedErrors(errors, Block)
    return labels


def matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node has what is asked for; one without a label is none of its values."""
    return all(_allows(text, labels.get(key)) for key, text in wanted.items())


def _allows(text: str, value: str | None) -> bool:
    bare = text.removeprefix("!")
    listed = _LIST.fullmatch(bare)
    values = {each.strip() for each in listed["values"].split(",")} if listed else {bare}
    return (value in values) != text.startswith("!")

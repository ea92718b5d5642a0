"""`--set PATH=VALUE`: change single values of a spec from the command line.

A path is made of keys, list indices and task names: `search.density=[0.5, 0.3]`,
`tasks.docs-lm.dense.steps=50`, `tasks[0].model.config.n_layer=2`. A value is YAML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from orchestrator.errors import SpecError, redact_uri
from orchestrator.spec_values import CHANGEABLE, SEARCHABLE
from orchestrator.spec_yaml import Document, Place, forget, parse


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each value in `document`, later ones over earlier ones; messages then name `--set`.

    Raises:
        SpecError: An override has no `=`, no YAML value, or leads into something that is no block.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        if not equals or not path:
            raise _refuse(
                document, f"--set {redact_uri(path)}".strip(), "must be PATH=VALUE, like `seed=3`"
            )
        label = f"--set {redact_uri(path)}"
        value = _value(document, text, label)
        parts = re.sub(r"\[(\d+)\]", r".\1", path).split(".")
        if "" in parts:
            raise _refuse(document, label, "a key between two dots is empty")
        _set(document, _as_in_file(document, parts), value, label)


def _value(document: Document, text: str, label: str) -> Any:
    try:
        return parse(text, label).data
    except SpecError as error:
        problems = [problem.replace(f"{label}:1:", f"{label}:", 1) for problem in error.problems]
        raise SpecError(document.path, None, problems) from error


def _set(document: Document, parts: list[str], value: Any, label: str) -> None:
    place: Place = ()
    holder = document.data
    while True:
        key, parts = _step(document, holder, place, parts, label)
        place = (*place, key)
        if not parts:
            break
        if isinstance(holder, dict) and holder.get(str(key)) is None:  # absent, or `tracking:`
            holder[str(key)] = {}
            document.origins[place] = label
        holder = holder[key]
    holder[key] = value
    forget(document.origins, place)
    document.origins[place] = label


def _step(
    document: Document, holder: Any, place: Place, parts: list[str], label: str
) -> tuple[Any, list[str]]:
    """The next key or index, and what remains of the path."""
    if isinstance(holder, dict):
        return parts[0], parts[1:]
    here = ".".join(map(str, place))
    if not isinstance(holder, list):
        raise _refuse(document, label, f"`{here}` is a single value and has no `{parts[0]}`")
    names = {str(item.get("name")): i for i, item in enumerate(holder) if isinstance(item, dict)}
    for length in range(len(parts), 0, -1):  # a task name may hold dots
        if (name := ".".join(parts[:length])) in names:
            return names[name], parts[length:]
    if parts[0].isdecimal() and int(parts[0]) < len(holder):
        return int(parts[0]), parts[1:]
    known = f"0 to {len(holder) - 1}" if holder else "nothing"
    known += f", or {', '.join(names)}" if place == ("tasks",) and names else ""
    raise _refuse(document, label, f"`{here}` has no `{parts[0]}`; it holds {known}")


def _as_in_file(document: Document, parts: list[str]) -> list[str]:
    """A field may stand in its block or in the block's `fields`: the one there is replaced.

    The blocks are `search` and each of `search.methods`.
    """
    depth = 3 if parts[:2] == ["search", "methods"] else 1
    block: Any = document.data
    for part in parts[:depth]:
        block = block.get(part) if isinstance(block, dict) else None
    if parts[0] != "search" or not isinstance(block, dict):
        return parts
    above, rest = parts[:depth], parts[depth:]
    known = SEARCHABLE if depth == 1 else CHANGEABLE
    if rest and rest[0] in known and isinstance(block.get("fields"), dict):
        return [*above, "fields", *rest]
    if len(rest) > 1 and rest[0] == "fields" and rest[1] in block:
        return [*above, *rest[1:]]
    return parts


def _refuse(document: Document, label: str, problem: str) -> SpecError:
    return SpecError(document.path, None, [f"{label}: {problem}"])

"""YAML text to plain values that remember where they stand.

Only what a spec needs: mappings with text keys, lists, text, numbers, true/false and null, as
YAML 1.2 has them. So `2e-3` is a number, `no` and `2024-01-01` are text, and nothing is ever
executed. Anchors and aliases work within a budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import SpecError
from orchestrator.yaml_dialect import MAX_DEPTH, TAG, Dumper, Loader, TooDeepError

MAX_BYTES = 1_000_000
"""A spec is written by a person; a megabyte is a data file handed over by mistake."""
MAX_VALUES = 100_000
"""After aliases are expanded: ten aliases of ten aliases, nine levels deep, are a billion."""
_DEPTH_RULE = f"blocks must not nest deeper than {MAX_DEPTH} levels"

Place = tuple[str | int, ...]
"""Keys and list indices from the root: `("tasks", 0, "name")`."""


@dataclass
class Document:
    """The values of a spec file, and for each the line or the override that it comes from."""

    path: str
    data: Any
    origins: dict[Place, int | str] = field(default_factory=dict)

    def origin(self, place: Place) -> int | str | None:
        """Line, or `--set KEY`, of the value or of the closest block around it."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.origins:
                return self.origins[place[:length]]
        return None

    def locate(self, place: Place) -> str:
        """`FILE:LINE` or `--set KEY`, as messages begin."""
        origin = self.origin(place)
        if isinstance(origin, str):
            return origin
        return self.path if origin is None else f"{self.path}:{origin}"

    def line(self, place: Place) -> int | None:
        origin = self.origin(place)
        return origin if isinstance(origin, int) else None


def read_document(path: str | Path) -> Document:
    """Read a spec file.

    Raises:
        SpecError: The file cannot be read, or is not the YAML that a spec may use.
    """
    text = _read_text(Path(path))
    document = parse(text, str(path))
    if document.data is None:
        raise SpecError(str(path), None, [f"{path}: the file is empty"])
    if not isinstance(document.data, dict):
        kind = "a list" if isinstance(document.data, list) else "a single value"
        problem = f"{path}:1: a spec must be a block of keys and values, got {kind}"
        raise SpecError(str(path), 1, [problem])
    return document


def parse(text: str, source: str) -> Document:
    """Parse YAML; `source` names it in messages.

    Raises:
        SpecError: With every duplicate key, or the first syntax error.
    """
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        problem = f"{source}:{line}: not valid YAML: {error.reason}"
        raise SpecError(source, line, [problem]) from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, "\\U00110000"
        raise SpecError(source, None, [f"{source}: not valid YAML: {error}"]) from error
    except TooDeepError as error:
        (line,) = error.args
        problem = f"{source}:{line}: {_DEPTH_RULE}"
        raise SpecError(source, line, [problem]) from error
    builder = _Builder(source)
    data = None if node is None else builder.build(node, ())
    if builder.problems:
        problems = [f"{source}:{line}: {text}" for line, text in sorted(builder.problems)]
        raise SpecError(source, min(builder.problems)[0], problems)
    return Document(source, data, builder.origins)


def dump(data: Any) -> str:
    """YAML text that `parse` reads back as the same values."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def _read_text(path: Path) -> str:
    def refuse(problem: str) -> SpecError:
        return SpecError(str(path), None, [f"{path}: {problem}"])

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise refuse("file not found") from error
    except IsADirectoryError as error:
        raise refuse("is a folder, a YAML file is expected") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise refuse(f"cannot be read: {reason}") from error
    if len(raw) > MAX_BYTES:
        raise refuse(f"a spec must not exceed {MAX_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = f"{path}:{line}: must be UTF-8, got byte 0x{raw[error.start]:02x}"
        raise SpecError(str(path), line, [problem]) from error


def _syntax_error(error: yaml.MarkedYAMLError, source: str) -> SpecError:
    mark = error.problem_mark or error.context_mark
    message = error.problem or error.context or "cannot be parsed"
    if message.startswith("but "):
        message = f"{error.context}, {message}"
    if "'\\t'" in message:
        message += " (indent with spaces, not with tabs)"
    elif message.startswith("mapping values are not allowed"):
        message += " (check the indentation, and quote text that holds `: `)"
    if mark is None:
        return SpecError(source, None, [f"{source}: not valid YAML: {message}"])
    where = f"{source}:{mark.line + 1}"
    problem = f"{where}: not valid YAML: {message}, column {mark.column + 1}"
    return SpecError(source, mark.line + 1, [problem])


class _Builder:
    """Turns composed nodes into values; collects what a person can mend in one go."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.origins: dict[Place, int | str] = {}
        self.problems: list[tuple[int, str]] = []
        self._values = 0

    def build(self, node: yaml.Node, place: Place) -> Any:
        self._spend(node, place)
        self.origins.setdefault(place, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        expected = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != TAG + expected:
            self._report(node, f"the tag {_short(node.tag)} is not supported")
            return None
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*place, i)) for i, child in enumerate(node.value)]
        return self._mapping(node, place)

    def _spend(self, node: yaml.Node, place: Place) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            rule = f"a spec must not hold more than {MAX_VALUES} values, aliases expanded"
        elif len(place) > MAX_DEPTH:
            rule = _DEPTH_RULE
        else:
            return
        line = _line(node)
        raise SpecError(self.source, line, [f"{self.source}:{line}: {rule}"])

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return _scalar_value(node)
        except ValueError as error:
            self._report(node, str(error))
            return None

    def _mapping(self, node: yaml.Node, place: Place, depth: int = 0) -> dict[str, Any]:
        """Values of a mapping; its own keys win over those merged with `<<`."""
        own = [pair for pair in node.value if pair[0].tag != TAG + "merge"]
        result = self._merged_blocks(node, place, depth) if len(own) < len(node.value) else {}
        lines: dict[str, int] = {}
        for key_node, value_node in own:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != TAG + "str":
                self._report(key_node, f"keys must be text, got {_key_text(key_node)}")
            elif key in lines:
                self._report(key_node, f"key `{key}` is given twice, first in line {lines[key]}")
            else:
                if key in result:
                    forget(self.origins, (*place, key))
                lines[key] = self.origins[(*place, key)] = _line(key_node)
                result[key] = self.build(value_node, (*place, key))
        return result

    def _merged_blocks(self, node: yaml.Node, place: Place, depth: int) -> dict[str, Any]:
        """What the `<<` keys bring in; of several blocks the first wins, as in YAML."""
        result: dict[str, Any] = {}
        sources = [value for key, value in node.value if key.tag == TAG + "merge"]
        for source in sources:
            many = isinstance(source, yaml.SequenceNode)
            for block in reversed(source.value if many else [source]):
                self._spend(block, (*place, *range(depth)))
                if isinstance(block, yaml.MappingNode):
                    result |= self._mapping(block, place, depth + 1)
                else:
                    self._report(block, "`<<` merges blocks of keys and values only")
        return result

    def _report(self, node: yaml.Node, problem: str) -> None:
        entry = (_line(node), problem)
        if entry not in self.problems:  # an alias visits its node again
            self.problems.append(entry)


def forget(origins: dict[Place, int | str], place: Place) -> None:
    """Drop the origins of a value that is replaced, and of everything in it."""
    for known in [known for known in origins if known[: len(place)] == place]:
        del origins[known]


def _scalar_value(node: yaml.ScalarNode) -> Any:
    text, kind = node.value, node.tag.removeprefix(TAG)
    if kind == "str":
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("must be text without halves of surrogate pairs")
        return text
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("int", "float"):
        return _number(text, kind)
    raise ValueError(f"the tag {_short(node.tag)} is not supported")


def _number(text: str, kind: str) -> int | float:
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    try:
        value = int(text) if kind == "int" else float(text.replace(".inf", "inf"))
    except ValueError as error:
        raise ValueError(f"must be a number, got {shown}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {shown}")
    return value


def _key_text(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f'{node.value} (write "{node.value}")'
    return "a block"


def _short(tag: str) -> str:
    return tag.replace(TAG, "!!")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1

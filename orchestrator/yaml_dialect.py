"""The YAML of specs: that of version 1.2 for values, so `2e-3` is a number and `no` is text."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_DEPTH = 40

_DIGITS = r"(?:0|[1-9](?:_?[0-9])*)"
"""No leading zero: YAML 1.1 reads `010` as 8, YAML 1.2 as 10, so here it stays text."""
_EXPONENT = r"[eE][-+]?[0-9]+"
_RESOLVERS = [
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|True|false|False", list("tTfF")),
    ("int", rf"[-+]?{_DIGITS}", list("-+0123456789")),
    (
        "float",
        rf"[-+]?(?:{_DIGITS}\.[0-9]*|\.[0-9]+)(?:{_EXPONENT})?|[-+]?{_DIGITS}{_EXPONENT}"
        r"|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
]
TAG = "tag:yaml.org,2002:"


class TooDeepError(Exception):
    """Blocks in blocks, beyond the limit; with the line."""


class Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # not left to the interpreter's own limit, which any library in the process may have raised
        if self._depth > MAX_DEPTH:
            raise TooDeepError(self.peek_event().start_mark.line + 1)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class Dumper(yaml.SafeDumper):
    """Quotes every text that either this loader or one of YAML 1.1 would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # between single quotes the emitter loses a line break of Unicode
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar(TAG + "str", text, style=style)


for _name, _pattern, _first in _RESOLVERS:
    _regexp = re.compile(rf"(?:{_pattern})\Z")
    Loader.add_implicit_resolver(TAG + _name, _regexp, _first)
    Dumper.add_implicit_resolver(TAG + _name, _regexp, _first)
Dumper.add_representer(str, Dumper.represent_text)
Loader.add_implicit_resolver(TAG + "merge", re.compile(r"<<\Z"), ["<"])

"""JSON as a dataclass of ours: every field there, of its type, and none that is unknown."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def typed(kind: type[T], value: Any, whole: str = "the file") -> T:
    """A value of `kind`, made of what JSON gave.

    Args:
        kind: A dataclass, or a container of such.
        value: Of a JSON text.
        whole: What is at fault if no field of it is.

    Raises:
        ValueError: It is none; names the field, the rule and what stands there.
    """
    try:
        made: T = _adapter(cast(Any, kind)).validate_python(value, extra="forbid")
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"])) or whole
        others = f", and {len(more)} more" if more else ""
        got = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
        raise ValueError(f"{place:.100}: {first['msg']}{got}{others}") from error
    return made


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

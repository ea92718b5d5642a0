"""Damage at random places, drawn by hypothesis from a fixed seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

WRONG: list[Any] = [
    *(None, True, -1, 0, 10**30, 0.5, float("nan"), 1e308, "", "x" * 1000, "../../x", "a\0\u202e"),
    *([], {}, [[]], [None], {"a": 1}, ["x"] * 50),
]


def tries(count: int) -> Callable[[Any], Any]:
    """So many examples, the same in every run."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, a byte changed, lost or repeated."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["cut", "change", "lose", "repeat"]))
    if kind == "cut":
        return content[:at]
    if kind == "change":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    return content[:at] + content[at + 1 :] if kind == "lose" else content[: at + 1] + content[at:]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value below."""
    inner = value.items() if isinstance(value, dict) else []
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, each in inner:
        yield (*place, key)
        yield from places(each, (*place, key))


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """One value replaced, one key lost, or one added."""
    value = copy.deepcopy(value)
    *way, last = draw(st.sampled_from(sorted(places(value), key=repr)))
    at = value
    for key in way:
        at = at[key]
    kind = draw(st.sampled_from(["replace", "replace", "lose", "add"]))
    if kind == "lose":
        del at[last]
    elif kind == "add" and isinstance(at, dict):
        at[draw(st.sampled_from(["extra", "../x"]))] = draw(st.sampled_from(WRONG))
    else:
        at[last] = draw(st.sampled_from(WRONG))
    return value


HOSTILE = st.text(
    st.one_of(
        st.sampled_from("\t\n\r \"',;\\\x00\x0b\x0c\x1b\x1c\x85\xa0\u2028\u202e\ufeff\U0001f600ß"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)

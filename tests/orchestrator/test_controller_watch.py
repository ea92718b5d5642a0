"""When a training's controller is taken to stand still; that its training goes on is tested with a
cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from orchestrator.controller_watch import LOOKS, NOTE, Watch, stage
from orchestrator.watchdog import hung

Sign = str | None | Exception


def ended(signs: Iterable[Sign]) -> list[str | None]:
    """With what a training was ended that gave these signs, one at each look."""
    ends: list[str | None] = []
    over = threading.Event()
    with Watch(LOOKS * 1e-4, script(signs, over), ends.append):
        assert over.wait(60)
    return ends


def script(signs: Iterable[Sign], over: threading.Event) -> Callable[[], str | None]:
    rest = iter(signs)

    def sign() -> str | None:
        try:
            now = next(rest)
        except StopIteration:
            over.set()
            raise OSError("nothing more") from None
        if isinstance(now, Exception):
            raise now
        return now

    return sign


def test_whoever_gives_signs_is_left_alone() -> None:
    # each of them for as long as is allowed
    assert ended(f"{count} RunningState" for count in range(5) for _ in range(LOOKS)) == []


def test_whoever_stands_still_is_ended_once_in_each_limit() -> None:
    start, stays = ["1 ", "2 SchedulingState"], "2 SchedulingState"
    assert ended([*start, *[stays] * (LOOKS - 1)]) == []
    assert ended([*start, *[stays] * LOOKS]) == [stays]
    assert ended([*start, *[stays] * (3 * LOOKS)]) == [stays] * 3


def test_whoever_never_gave_a_sign_is_ended() -> None:
    assert ended([None] * (LOOKS - 1)) == []
    assert ended([None] * LOOKS) == [None]


def test_what_nobody_could_read_is_no_silence() -> None:
    away: list[Sign] = [OSError("the head does not answer")]
    assert ended(["1 ", *["1 "] * (LOOKS - 1), *away * LOOKS, *["1 "] * (LOOKS - 1)]) == []


@pytest.mark.parametrize(
    ("sign", "stood"),
    [
        (None, "before its first turn"),
        ("1 ", "before its first turn"),
        ("17 SchedulingState", "starting its workers"),
        ("17 PreemptingState", "in PreemptingState"),
    ],
)
def test_where_it_stood(sign: str | None, stood: str, tmp_path: Path) -> None:
    assert stage(sign) == stood
    (tmp_path / NOTE).write_text(f"{stood}\n")
    assert hung(tmp_path) == f"controller {stood}; all threads: {tmp_path}"

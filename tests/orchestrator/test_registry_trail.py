"""Who moved what: events, and several processes that move aliases at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import RegistryError
from orchestrator.registry import CHAMPION, PREVIOUS, Registry
from orchestrator.registry.audit import PREFIX, USER_ENV, Event, event, person, trail
from orchestrator.registry.lock import alone, lock_name

NAME = "campaign-lm"

PROMOTE = """
import sys
from orchestrator.registry import Registry

registry = Registry(sys.argv[1])
for _ in range(int(sys.argv[3])):
    registry.promote("campaign-lm", sys.argv[2], why=f"by {sys.argv[2]}")
"""


@pytest.fixture
def registry(store: str, tmp_path: Path) -> Registry:
    """With three versions of a model that has no files: only aliases move here."""
    registry = Registry(store)
    registry.client.create_registered_model(NAME)
    for number in range(3):
        registry.client.create_model_version(NAME, source=str(tmp_path / str(number)))
    return registry


def moved(registry: Registry) -> list[tuple[str, str, str | None]]:
    return [(e.action, e.version, e.before) for e in registry.trail(NAME)]


def test_every_move_leaves_an_event(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(USER_ENV, "ada")
    registry.promote(NAME, "1", why="smallest of 2")
    registry.promote(NAME, "2", why="smaller still")
    registry.promote(NAME, "2", why="again")
    registry.rollback(NAME, why="too slow")
    assert moved(registry) == [
        ("promote", "1", None),
        ("promote", "2", "1"),
        ("rollback", "1", "2"),
    ]
    events = registry.trail(NAME)
    assert {e.who for e in events} == {"ada"}
    assert [e.why for e in events] == ["smallest of 2", "smaller still", "too slow"]
    assert all(e.came_to_pass for e in events)
    assert sorted(e.when for e in events) == [e.when for e in events]


def test_what_moves_nothing_is_told_once(registry: Registry):
    registry.tell(NAME, "refuse", "1", "too large")
    registry.tell(NAME, "refuse", "1", "too large")
    registry.tell(NAME, "refuse", "1", "too slow")
    registry.tell(NAME, "refuse", "1", "too large")
    assert [e.why for e in registry.trail(NAME)] == ["too large", "too slow", "too large"]


def test_a_model_that_is_not_there(registry: Registry):
    with pytest.raises(RegistryError, match="no model 'never-seen' in sqlite"):
        registry.trail("never-seen")


def test_a_process_that_died_between_event_and_move(registry: Registry):
    registry.promote(NAME, "1")
    # an event of a promotion whose alias never moved, and then one that did
    registry.client.set_registered_model_tag(NAME, *event("promote", "2", "1", "died").tag())
    registry.promote(NAME, "3")
    assert [(e.version, e.came_to_pass) for e in registry.trail(NAME)] == [
        ("1", True),
        ("2", False),
        ("3", True),
    ]
    registry.client.set_registered_model_tag(NAME, *event("rollback", "1", "3", "died").tag())
    assert [e.came_to_pass for e in registry.trail(NAME)] == [True, False, True, False]


def test_one_that_died_between_the_two_moves_can_be_told_and_done_again(registry: Registry):
    registry.promote(NAME, "1")
    registry.client.set_registered_model_alias(NAME, PREVIOUS, "1")
    with pytest.raises(RegistryError, match="no other version with the alias 'previous'"):
        registry.rollback(NAME)
    assert registry.promote(NAME, "2") == "1"
    assert registry.rollback(NAME) == ("1", "2")


@pytest.mark.parametrize(
    "change",
    [{"action": "fly"}, {"before": 3}, {"version": None}, {"why": ["x"]}, {"who": 1}, {"more": 1}],
)
def test_tags_of_others_are_no_events(change: dict[str, object]):
    values = {"when": "w", "who": "a", "action": "promote", "version": "1", "before": None}
    right = {**values, "why": "x"}
    assert len(trail({PREFIX + "x": json.dumps(right)}, "1")) == 1
    tags = {PREFIX + "x": json.dumps(right | change), PREFIX + "y": "{", PREFIX + "z": "null"}
    assert trail(tags | {"team": "audit"}, None) == []


def test_a_long_reason_fits_into_a_tag(registry: Registry):
    registry.promote(NAME, "1", why="x" * 20_000)
    (told,) = registry.trail(NAME)
    assert 900 < len(told.why) <= 1003


def test_the_account_is_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(USER_ENV, raising=False)
    monkeypatch.setenv("LOGNAME", "grace")
    assert person() == "grace"
    monkeypatch.setenv(USER_ENV, "  ")
    assert person() == "grace"


def test_an_event_survives_its_tag():
    made = Event(when="2026-01-01", who="ä", action="wait", version="1", before=None, why="\n'\"")
    assert trail(dict([made.tag()]), None) == [made]


# --------------------------------------------------------------------------- several at once


@pytest.mark.slow
def test_promotions_at_once_leave_no_half_state(registry: Registry, store: str):
    """Two processes make their version champion, over and over."""
    command = [sys.executable, "-c", PROMOTE, store]
    started = [subprocess.Popen([*command, version, "3"]) for version in "12"]
    assert [process.wait(300) for process in started] == [0, 0]
    events = registry.trail(NAME)
    assert all(e.came_to_pass for e in events)
    # a chain: each found the one before it, so that nobody's champion was lost from sight
    assert [e.before for e in events] == [None, *(e.version for e in events[:-1])]
    assert registry.version(NAME, CHAMPION) == events[-1].version
    assert registry.version(NAME, PREVIOUS) == events[-1].before
    assert not registry.client.search_registered_models(f"name = '{lock_name(NAME)}'")


def test_who_holds_the_lock_is_waited_for(registry: Registry):
    done: list[str] = []

    def promote() -> None:
        registry.promote(NAME, "1")
        done.append("promoted")

    with alone(registry.client, NAME):
        other = threading.Thread(target=promote)
        other.start()
        time.sleep(1)
        assert registry.version(NAME, CHAMPION) is None
        done.append("let go")
    other.join(60)
    assert done == ["let go", "promoted"]
    assert registry.version(NAME, CHAMPION) == "1"


def test_a_lock_of_a_dead_process_is_taken_and_its_owner_moves_nothing_more(registry: Registry):
    with alone(registry.client, NAME) as still_alone:
        still_alone()
        with (
            alone(registry.client, NAME, stale_s=0.5),
            pytest.raises(RegistryError, match="another process went on after this one"),
        ):
            still_alone()
        # the first one's end must not free a lock that is no longer its own
        registry.client.create_registered_model(lock_name(NAME), tags={"owner": "third"})
    assert registry.client.get_registered_model(lock_name(NAME)).tags == {"owner": "third"}
    registry.client.delete_registered_model(lock_name(NAME))


def test_the_longest_name_has_a_lock(registry: Registry):
    for name in ("m" * 256, "m" * 255 + "n"):
        assert len(lock_name(name)) <= 256
    assert lock_name("m" * 256) != lock_name("m" * 255 + "n")

"""One driver at a time, on machines that share nothing but a bucket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.bucket import lease as module
from orchestrator.bucket.objects import Objects
from orchestrator.errors import StorageError
from orchestrator.interrupts import heard, interruptible
from orchestrator.layout import Layout
from tests.orchestrator.bucket.conftest import Bucket

HOLD = """
import sys
from orchestrator.bucket import lease
from orchestrator.layout import Layout

lease.LEASE_S, lease.BEAT_S = float(sys.argv[2]), float(sys.argv[3])
layout = Layout.of(sys.argv[1], "c")
layout.create()
try:
    with layout.locked(lambda text: None):
        print("held", flush=True)
        sys.stdin.readline()
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""
LEASE_S, BEAT_S = 300.0, 0.5
"""A machine that is busy is no dead driver."""
DEAD_S = 3.0
"""Where it is dead for sure."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_S", LEASE_S)
    monkeypatch.setattr(module, "BEAT_S", BEAT_S)


def driver(bucket: Bucket, machine: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, bucket.uri, str(LEASE_S), str(BEAT_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | bucket.environment(machine),
    )


def layout_of(bucket: Bucket, machine: str) -> Layout:
    bucket.seen_by(machine)
    layout = Layout.of(bucket.uri, "c")
    layout.create()
    return layout


def claims(layout: Layout) -> list[str]:
    mirror = layout.mirror.impatient
    return mirror.objects.names(mirror.key(layout.root / module.DRIVERS))


def test_a_second_driver_is_refused_and_a_dead_one_replaced(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    with driver(bucket, "one") as first:
        assert first.stdout.readline() == "held\n"
        layout = layout_of(bucket, "two")
        who = f"process {first.pid} on {socket.gethostname()}"
        assert layout.driver() == who
        with pytest.raises(StorageError, match=f"'c' is being run by {who}"), layout.locked():
            pytest.fail("two drivers")
        assert len(claims(layout)) == 1
        # another campaign is nobody's business
        other = Layout.of(bucket.uri, "d")
        other.create()
        with other.locked():
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    monkeypatch.setattr(module, "LEASE_S", DEAD_S)
    said: list[str] = []
    with layout.locked(said.append):
        monkeypatch.setattr(module, "LEASE_S", LEASE_S)
        assert said == [f"claimed by {who}; taken over if it gives no sign for 3 s"]
        assert len(claims(layout)) == 1
        assert str(os.getpid()) in (layout.driver() or "")
    assert claims(layout) == []
    assert layout.driver() is None


def test_who_was_killed_in_the_same_folder_is_not_waited_for(bucket: Bucket):
    with driver(bucket, "one") as first:
        assert first.stdout.readline() == "held\n"
        first.kill()
        first.wait()
    layout = layout_of(bucket, "one")
    said: list[str] = []
    with layout.locked(said.append):
        assert said == []
    assert claims(layout) == []


def test_of_many_that_begin_together_one_drives(bucket: Bucket, tmp_path: Path):
    mirror = bucket.seen_by("one")
    for number in range(5):
        answers = _begin_together(mirror.objects, f"{bucket.prefix}/{number}", tmp_path)
        assert answers.count("held") == 1, answers
        assert all("is being run by process" in a for a in answers if a != "held"), answers


def _begin_together(objects: Objects, root: str, notes: Path) -> list[str]:
    """What four that have nothing but the bucket in common are told."""
    answers: list[str] = []
    everybody_knows = threading.Event()

    def drive(name: str) -> None:
        try:
            with module.Lease(objects, root, "c", notes / name, lambda text: None):
                answers.append("held")
                everybody_knows.wait(120)
        except StorageError as error:
            answers.append(str(error))

    several = [
        threading.Thread(target=drive, args=[f"{root.replace('/', '-')}-{n}"]) for n in range(4)
    ]
    for each in several:
        each.start()
    deadline = time.monotonic() + 120
    while len(answers) < len(several) and time.monotonic() < deadline:
        time.sleep(0.05)
    everybody_knows.set()
    for each in several:
        each.join()
    return answers


def test_a_driver_that_was_found_dead_ends_when_it_looks(bucket: Bucket):
    """As one whose machine stood still for longer than its lease."""
    layout = layout_of(bucket, "one")
    mirror = layout.mirror.impatient
    said: list[str] = []

    def take_over() -> None:
        time.sleep(2 * BEAT_S)
        for name in claims(layout):
            mirror.objects.delete(mirror.key(layout.root / module.DRIVERS / name))
        # whose claim may come back, if it was about to renew it: then the later term tells
        claim = {"machine": "m", "process": 1, "state": module.DRIVING, "term": 9, "beat": 1}
        key = mirror.key(layout.root / module.DRIVERS / "other.json")
        mirror.objects.write(key, json.dumps(claim).encode())

    other = threading.Thread(target=take_over)

    def drive() -> None:
        with heard(), layout.locked(said.append):
            other.start()
            time.sleep(60)

    with interruptible(), pytest.raises(KeyboardInterrupt):
        drive()
    other.join()  # it may be found out between its two requests; after the test it has no key
    assert said == ["another driver has taken the campaign over; this one ends"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"term": "x"}', b"\xff" * 9])
def test_a_claim_that_is_none_is_found_dead(
    bucket: Bucket, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LEASE_S", 0.5)
    layout = layout_of(bucket, "one")
    mirror = layout.mirror.impatient
    mirror.objects.write(mirror.key(layout.root / module.DRIVERS / "0.json"), content)
    with layout.locked(lambda text: None):
        assert len(claims(layout)) == 1

"""One driver at a time, where several machines see the same bucket and no lock between them.

Each driver keeps a claim, an object of its own, and writes it again every few seconds. Whoever
wants to drive writes a claim first and looks for others then: of two that do so at the same time
each sees the other, on a store that lists what was written before (S3, Google Cloud Storage and
Azure do). No clocks are compared: a claim is dead when it does not change for as long as somebody
has watched it.

It keeps work from being done twice. It does not protect what is stored: everything is written
under the key of its content, and a driver that was paused beyond its lease ends when it looks.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.bucket.objects import Objects, StorageAway
from orchestrator.errors import StorageError

logger = logging.getLogger(__name__)

LEASE_S = 60.0
"""A claim that does not change for so long is that of a dead driver. Six beats: one request, with
all attempts of the client, takes less even where the server is slow."""
BEAT_S = 10.0
DRIVERS = ".drivers"
ASKING, DRIVING = "asking", "driving"


class Lease:
    """A campaign on a bucket, for the length of a block.

    Args:
        objects: The bucket.
        root: Key of the campaign's folder.
        campaign: For messages.
        note: File of this machine with the claim of the driver that held this folder before. Its
            lock is held by now, so that one is dead.
        say: Hears of a dead driver that is waited for, and of a lease that is lost.

    Raises:
        StorageError: Another driver holds the campaign.
    """

    def __init__(
        self, objects: Objects, root: str, campaign: str, note: Path, say: Callable[[str], None]
    ) -> None:
        # a claim that is read while its driver renews it may be an error, and is one no more then
        self._objects = replace(objects, wait_s=BEAT_S)
        self._folder = f"{root}/{DRIVERS}"
        self._campaign, self._note, self._say = campaign, note, say
        self._id, self._state, self._term, self._beats = uuid.uuid4().hex, ASKING, 0, 0
        self._said = False
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat_on, daemon=True)

    def __enter__(self) -> None:
        self._bury()
        self._note.write_text(self._id, encoding="utf-8")
        self._beat()
        self._beating.start()
        try:
            self._wait_for_others()
            self._state = DRIVING
            self._beat()
        except BaseException:
            self._end()
            raise

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._beating.join(BEAT_S)
        try:
            self._objects.delete(self._key(self._id))
        except StorageError as error:
            logger.warning("the claim stays until it is found dead: %s", error)

    def _bury(self) -> None:
        """The claim of whoever held this machine's folder before; its lock is ours now."""
        if self._note.exists() and (earlier := self._note.read_text(encoding="utf-8").strip()):
            self._objects.delete(self._key(earlier))

    def _wait_for_others(self) -> None:
        seen: dict[str, tuple[bytes, float]] = {}
        while others := self._others():
            for name, content in others.items():
                claim = _read(content)
                before, since = seen.setdefault(name, (content, time.monotonic()))
                self._term = max(self._term, claim["term"] + 1)
                if content == before:
                    if time.monotonic() - since > LEASE_S:
                        self._objects.delete(f"{self._folder}/{name}")
                    continue
                # it lives; of two that ask the one with the smaller name stays
                if claim["state"] == DRIVING or name < f"{self._id}.json":
                    raise StorageError(
                        f"campaign {self._campaign!r} is being run by {_who(claim)}; "
                        "one process at a time may drive a campaign"
                    )
                seen[name] = (content, time.monotonic())
            if not self._said:
                self._said = True
                who = ", ".join(_who(_read(content)) for content in others.values())
                self._say(f"claimed by {who}; taken over if it gives no sign for {LEASE_S:g} s")
            time.sleep(min(1.0, BEAT_S / 5))

    def _others(self) -> dict[str, bytes]:
        names = [n for n in self._objects.names(self._folder) if n != f"{self._id}.json"]
        found = {name: self._objects.read(f"{self._folder}/{name}") for name in names}
        return {name: content for name, content in found.items() if content is not None}

    def _beat(self) -> None:
        self._beats += 1
        claim = {
            "machine": socket.gethostname(),
            "process": os.getpid(),
            "state": self._state,
            "term": self._term,
            "beat": self._beats,
        }
        self._objects.write(self._key(self._id), json.dumps(claim).encode())

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                if self._is_lost():
                    self._say("another driver has taken the campaign over; this one ends")
                    # as a notice to end: in the main thread, and at a place where it tears nothing
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                    return
                self._beat()
            except StorageAway as error:
                # nobody else can take it over meanwhile, unless the bucket is away from here alone
                logger.warning("the claim could not be renewed: %s", error)
            except StorageError as error:
                logger.error("the claim could not be renewed: %s", error)

    def _is_lost(self) -> bool:
        """Whether it was found dead: the bucket was away from here, or this process stood still."""
        if self._state != DRIVING:
            return False
        names = self._objects.names(self._folder)
        if f"{self._id}.json" not in names:
            return True
        later = (_read(each) for each in self._others().values())
        return any(each["state"] == DRIVING and each["term"] > self._term for each in later)

    def _key(self, id: str) -> str:
        return f"{self._folder}/{id}.json"


def holder(objects: Objects, root: str) -> str | None:
    """Who drives a campaign, by a claim that is young by this machine's clock; None if nobody."""
    objects = replace(objects, wait_s=BEAT_S)
    for name in objects.names(f"{root}/{DRIVERS}"):
        key = f"{root}/{DRIVERS}/{name}"
        content, written = objects.read(key), objects.changed(key)
        if content is None or written is None:
            continue
        claim = _read(content)
        if claim["state"] == DRIVING and time.time() - written < LEASE_S:
            return _who(claim)
    return None


def _read(content: bytes) -> dict[str, Any]:
    """A claim; of what is none, one that says nothing and will be found dead."""
    claim: dict[str, Any] = {"machine": "?", "process": "?", "state": ASKING, "term": 0}
    try:
        found = json.loads(content)
        claim |= {key: found[key] for key in claim if isinstance(found[key], str | int)}
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return claim if isinstance(claim["term"], int) else claim | {"term": 0}


def _who(claim: dict[str, Any]) -> str:
    return f"process {claim['process']} on {claim['machine']}"

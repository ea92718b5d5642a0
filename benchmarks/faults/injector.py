"""Lets faults happen at random times while a campaign runs, and starts again what is over."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.faults.kinds import KINDS
from benchmarks.faults.ledger import Fault, Ledger
from benchmarks.faults.machines import Machines
from benchmarks.faults.scene import NotNow, Scene

MOST_STARTS = 60
"""Of a driver in one campaign, after which it is taken never to end."""
TRIES = 3
"""Of other kinds, when there is nothing of the one that was drawn to hit."""
SIGN = re.compile(rb": step \d|: finished,|: measuring speed")
"""In the driver's log: the campaign moves."""


class Injector:
    """Faults from a seed: their kinds, their times, their victims.

    Every kind comes once before one comes again, in an order that is drawn anew each time.

    Args:
        machines: What they happen to.
        folder: Its part `runs` is the campaign's storage.
        ledger: Where they are written down.
        seed: Of all draws.
        mean_s: Between two faults; exponentially distributed, so that they come at any moment.
    """

    def __init__(
        self, machines: Machines, folder: Path, ledger: Ledger, seed: int, mean_s: float
    ) -> None:
        self._machines, self._ledger, self._mean_s = machines, ledger, mean_s
        self._draws = random.Random(seed)
        self._scene = Scene(machines, folder / "runs", self._draws)
        self._kinds = self._order()
        self._waiting: list[tuple[Fault, int]] = []
        """Faults after which nothing has moved yet, with how long the log was after them."""

    def campaign(self, command: Sequence[str], num_faults: int) -> float:
        """One campaign to its end, with faults until the ledger has as many as asked for; returns
        the seconds that it took."""
        began = time.monotonic()
        for _ in range(MOST_STARTS):
            if self._until_it_ends(command, num_faults) == 0:
                return time.monotonic() - began
        raise SystemExit(f"not over after {MOST_STARTS} starts: {self._machines.log}")

    def _until_it_ends(self, command: Sequence[str], num_faults: int) -> int:
        """The driver's exit status; a killed one has a negative."""
        machines = self._machines
        machines.start_driver(command)
        self._ledger.start(command)
        assert machines.driver is not None
        due = time.monotonic() + self._draws.expovariate(1 / self._mean_s)
        while machines.driver.poll() is None:
            if len(self._ledger.faults) < num_faults and time.monotonic() >= due:
                self._one()
                due = time.monotonic() + self._draws.expovariate(1 / self._mean_s)
            self._look()
            time.sleep(0.1)
        self._look()
        self._ledger.end(machines.driver.returncode)
        return machines.driver.returncode

    def _one(self) -> None:
        for _ in range(TRIES):
            kind = next(self._kinds)
            at = time.time()
            try:
                what = KINDS[kind](self._scene)
            except NotNow as reason:
                print(f"{kind}: {reason}", flush=True)
                continue
            fault = Fault(kind=kind, at=at, what=what)
            number = self._ledger.add(fault)
            self._waiting.append((fault, self._machines.log.stat().st_size))
            print(f"{number:3} {kind}: {what}", flush=True)
            return

    def _look(self) -> None:
        """For a sign in the driver's log, after each fault."""
        for fault, length in list(self._waiting):
            with self._machines.log.open("rb") as log:
                log.seek(length)
                if SIGN.search(log.read()):
                    self._waiting.remove((fault, length))
                    self._ledger.went_on(fault, time.time() - fault.at)

    def _order(self) -> Iterator[str]:
        while True:
            kinds = list(KINDS)
            self._draws.shuffle(kinds)
            yield from kinds

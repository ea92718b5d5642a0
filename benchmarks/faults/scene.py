"""What the faults of a campaign may touch."""

from __future__ import annotations

import random
from pathlib import Path

import psutil

from benchmarks.faults.machines import Machines, wait_until

WAIT_S = 90.0
"""For a process of the kind that is to be hit."""


class NotNow(Exception):
    """There is nothing of the kind to hit at the moment."""


class Scene:
    """What a fault may touch."""

    def __init__(self, machines: Machines, storage: Path, draws: random.Random) -> None:
        self.machines, self.storage, self.draws = machines, storage, draws

    def process(self, title: str) -> psutil.Process:
        """A random one of those that have this title."""
        self.running()
        found = wait_until(lambda: self.machines.processes(title) or self.over(), WAIT_S)
        if not isinstance(found, list):
            raise NotNow(f"no {title} in {WAIT_S:g} s, or until the driver ended")
        return self.draws.choice(sorted(found, key=lambda process: process.pid))

    def over(self) -> bool:
        """Whether no driver runs."""
        driver = self.machines.driver
        return driver is None or driver.poll() is not None

    def running(self) -> None:
        """Asks for a driver that runs."""
        if self.over():
            raise NotNow("no driver runs")

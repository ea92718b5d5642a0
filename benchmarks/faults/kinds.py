"""The kinds of faults. Each does its harm for real, mends what a person would mend, and returns."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.machines import Machines, wait_until

WORKER, TRIAL, CONTROLLER = "ray::RayTrainWorker", "ray::ImplicitFunc", "ray::TrainController"
WAIT_S = 90.0
"""For a process of the kind that is to be hit."""
MOST_FILL = 4 << 30
"""A file system with more room than this is not filled."""

Fault = Callable[["Scene"], str]
"""Returns what was hit; raises `NotNow` if there was nothing to hit."""


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


def kill_process(title: str) -> Fault:
    def fault(scene: Scene) -> str:
        process = scene.process(title)
        process.send_signal(signal.SIGKILL)
        return f"SIGKILL to {title} {process.pid}"

    return fault


def stop_worker(scene: Scene) -> str:
    """It answers nobody any more, and is not dead."""
    process = scene.process(WORKER)
    process.send_signal(signal.SIGSTOP)
    return f"SIGSTOP to {WORKER} {process.pid}"


def no_memory(scene: Scene) -> str:
    """Its next allocation fails."""
    process = scene.process(WORKER)
    size = process.memory_info().vms
    process.rlimit(psutil.RLIMIT_AS, (size, size))
    return f"{WORKER} {process.pid} may not grow beyond {size >> 20} MiB"


def kill_driver(scene: Scene) -> str:
    scene.running()
    scene.machines.end_driver(signal.SIGKILL)
    return "SIGKILL to the driver"


def end_driver(scene: Scene) -> str:
    scene.running()
    how = scene.draws.choice([signal.SIGTERM, signal.SIGINT])
    scene.machines.end_driver(how)
    return f"{how.name} to the driver"


def kill_node(scene: Scene) -> str:
    node = scene.draws.choice(scene.machines.nodes)
    scene.machines.kill_node(node)
    time.sleep(scene.draws.uniform(0, 5))
    scene.machines.add_node()
    return "a node with all its processes; another one came"


def take_node(scene: Scene) -> str:
    """With notice, as spot machines are taken."""
    node = scene.draws.choice(scene.machines.nodes)
    scene.machines.drain_node(node, 30)
    time.sleep(15)
    scene.machines.kill_node(node)
    scene.machines.add_node()
    return "a node, 15 s after its notice; another one came"


def kill_server(scene: Scene) -> str:
    scene.machines.server.kill()
    away = scene.draws.uniform(1, 20)
    time.sleep(away)
    scene.machines.server.start()
    return f"SIGKILL to the MLflow server, away for {away:.0f} s"


def fill_disk(scene: Scene) -> str:
    """The file system that holds the campaign."""
    free = shutil.disk_usage(scene.storage).free
    if free > MOST_FILL:
        raise NotNow(f"{free >> 30} GiB are free, and no more than {MOST_FILL >> 30} are filled")
    filler, seconds = scene.storage / "filler", scene.draws.uniform(5, 15)
    try:
        with filler.open("wb", buffering=0) as file:
            _fill(file)
        time.sleep(seconds)
    finally:
        filler.unlink(missing_ok=True)
    return f"no space left for {seconds:.0f} s"


def _fill(file: Any) -> None:
    block = bytes(1 << 20)
    while True:
        try:
            file.write(block)
        except OSError:
            if len(block) == 1:
                os.fsync(file.fileno())
                return
            block = block[: len(block) // 2]


KINDS: dict[str, Fault] = {
    "worker killed": kill_process(WORKER),
    "worker stopped": stop_worker,
    "worker without memory": no_memory,
    "trial killed": kill_process(TRIAL),
    "controller killed": kill_process(CONTROLLER),
    "driver killed": kill_driver,
    "driver ended": end_driver,
    "node killed": kill_node,
    "node taken with notice": take_node,
    "MLflow server killed": kill_server,
    "disk full": fill_disk,
}

"""The kinds of faults. Each does its harm for real, mends what a person would mend, and returns."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import psutil

from benchmarks.faults.scene import Scene
from benchmarks.faults.storage import fill_disk, forbid_writes, freeze

WORKER, TRIAL, CONTROLLER = "ray::RayTrainWorker", "ray::ImplicitFunc", "ray::TrainController"
Fault = Callable[[Scene], str]
"""Returns what was hit; raises `NotNow` if there was nothing to hit."""


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


def kill_database(scene: Scene) -> str:
    """The MLflow server lives on, and has nothing to answer from."""
    scene.machines.database.kill()
    away = scene.draws.uniform(1, 20)
    time.sleep(away)
    scene.machines.database.start()
    return f"SIGKILL to PostgreSQL and its backends, away for {away:.0f} s"


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
    "MLflow's database killed": kill_database,
    "disk full": fill_disk,
    "storage read-only": forbid_writes,
    "storage frozen": freeze,
}

"""The machines of a campaign on one machine: Ray nodes, an MLflow server with its database, and the
campaign's driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.drain import notice
from tests.orchestrator.tracking.postgres import Postgres
from tests.orchestrator.tracking.server import Server, free_port

NODES = 2
"""With one CPU each; the head has none, only the trials' own processes."""
ENVIRONMENT = {
    # Ray's 10 minutes until a process that answers nobody is ended would be most of the time
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


class Machines:
    """Starts all of it; what is killed is started again by whoever killed it.

    Args:
        folder: Of the server, and of the driver's log.
    """

    def __init__(self, folder: Path) -> None:
        from orchestrator.cluster import set_environment
        from orchestrator.room import DRIVER

        os.environ |= ENVIRONMENT
        set_environment()
        from ray.cluster_utils import Cluster

        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "driver.log"
        self.database = Postgres()
        self.database.start()
        self.server = Server(folder / "server", self.database.uri)
        self.server.start()
        self._cluster: Any = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "resources": {DRIVER: 16},
                # Ray Train asks the dashboard when it frees what a stopped trial held
                "include_dashboard": True,
                "dashboard_port": free_port(),
            },
        )
        self.nodes: list[Any] = []
        for _ in range(NODES):
            self.add_node()
        self.driver: subprocess.Popen[bytes] | None = None

    # ----------------------------------------------------------------- nodes

    def add_node(self) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=1))

    def kill_node(self, node: Any) -> None:
        """All its processes at once."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain_node(self, node: Any, seconds: int) -> None:
        """The notice that a cloud gives before it takes a machine away."""
        command = notice(self._cluster.address, node.node_id, seconds)
        subprocess.run(command, check=True, capture_output=True)

    def processes(self, title: str) -> list[psutil.Process]:
        """Of all nodes, those whose title begins so: Ray names them by what they run."""
        found = []
        for node in (self._cluster.head_node, *self.nodes):
            for raylet in node.all_processes.get("raylet", []):
                found += _titled(raylet.process.pid, title)
        return found

    # ----------------------------------------------------------------- the campaign's driver

    def start_driver(self, command: Sequence[str]) -> None:
        """`lowrank ...`; what it says is added to the log."""
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-u", "-m", "jobs", *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"RAY_ADDRESS": self._cluster.address},
                # whoever runs this from a shell's background ignores SIGINT
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def end_driver(self, how: signal.Signals) -> None:
        """Returns when it is gone."""
        assert self.driver is not None
        self.driver.send_signal(how)
        try:
            self.driver.wait(120)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()

    def close(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.end_driver(signal.SIGTERM)
        self.server.kill()
        self.database.remove()
        self._cluster.shutdown()


def _titled(parent: int, title: str) -> list[psutil.Process]:
    found = []
    try:
        for child in psutil.Process(parent).children(recursive=True):
            try:
                if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[0].startswith(title):
                    found.append(child)
            except (psutil.Error, IndexError):
                continue
    except psutil.Error:
        pass
    return found


def wait_until(condition: Any, seconds: float) -> Any:
    """The first true value, or None after the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    return None

"""Ray nodes on this machine, started as on a cluster: by `ray start`."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.integration.conftest import wait_for

START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
START += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
START += ["--object-store-memory=100000000"]


@contextmanager
def node(command: list[str], log: Path, variables: dict[str, str]) -> Iterator[psutil.Process]:
    """A node that runs; at the end it and what it has started are gone, and nothing else."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables)
    mine = []
    try:
        wait_for("Ray runtime started", log, process)
        mine = psutil.Process(process.pid).children(recursive=True)
        yield psutil.Process(process.pid)
    finally:
        if process.poll() is None:
            mine += psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(60)
        _, alive = psutil.wait_procs(mine, timeout=10)
        for each in alive:
            each.kill()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

"""A real MLflow server that can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import requests


def free_port() -> int:
    """On this machine, for a server of a test's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server` on a port of its own, with its database and artifacts in a folder.

    Args:
        folder: What survives the process.
        database: SQLAlchemy's URI of its store; by default SQLite in the folder.
        workers: Processes that answer.
    """

    def __init__(self, folder: Path, database: str | None = None, workers: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.workers = folder, workers
        self.database = database or f"sqlite:///{folder}/mlflow.db"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--port", str(self.port)),
                    *("--backend-store-uri", self.database),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                    *("--workers", str(self.workers)),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its workers die with it
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            )
        deadline = time.monotonic() + 300
        while True:
            try:
                if requests.get(f"{self.uri}/health", timeout=2).ok:
                    return
            except requests.RequestException:
                pass
            text = (self.folder / "log.txt").read_text(errors="replace")
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL to it and all its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

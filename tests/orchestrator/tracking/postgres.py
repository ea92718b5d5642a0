"""A real PostgreSQL that can be killed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROLE, DATABASE = "lowrank", "mlflow"


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`; distributions keep it off the search path."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


class Postgres:
    """A server of its own, reached by a socket in a folder that only it and this user can enter.

    PostgreSQL refuses to run as root: started by root it runs as `postgres`.
    """

    def __init__(self) -> None:
        where = binaries()
        assert where is not None, "PostgreSQL is not installed"
        self._binaries = where
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        # another user may not enter the tests' folder, and sockets' paths are short
        self.folder = Path(tempfile.mkdtemp(prefix="lowrank-postgres-"))
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self.uri = f"postgresql+psycopg://{ROLE}@/{DATABASE}?host={self.folder}"
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", f"{self.folder}/data", "-U", ROLE, "-A", "trust", "-E", "UTF8")

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._binaries / "postgres", "-D", f"{self.folder}/data"),
                    *("-k", str(self.folder), "-c", "listen_addresses="),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its backends die with it
                **self._as_user(),
            )
        deadline = time.monotonic() + 60
        while "1" not in self.query("SELECT 1", "postgres", check=False):
            text = (self.folder / "log.txt").read_text(errors="replace")
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        if DATABASE not in self.query("SELECT datname FROM pg_database", "postgres"):
            self.query(f"CREATE DATABASE {DATABASE}", "postgres")

    def query(self, sql: str, database: str = DATABASE, check: bool = True) -> str:
        """The rows, unaligned."""
        asked = ["-h", str(self.folder), "-U", ROLE, "-d", database, "-Atc", sql]
        return self._run("psql", *asked, check=check)

    def kill(self) -> None:
        """SIGKILL to it and all its backends."""
        if self._process is not None:
            # each backend is a session of its own
            children = _children(self._process.pid)
            for pid in (self._process.pid, *children):
                os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, name: str, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [self._binaries / name, *arguments],
            capture_output=True,
            text=True,
            check=False,
            **self._as_user(),
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def _as_user(self) -> dict[str, object]:
        common: dict[str, object] = {"cwd": self.folder}
        if self._user is None:
            return common
        return common | {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in tasks.read_text().split()]

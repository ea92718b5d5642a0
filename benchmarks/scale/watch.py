"""A command as a process: when it said what, how much memory it had, how long it took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Line:
    seconds: float
    """Since the process was started."""
    mib: float
    """Its memory then, resident."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Watched:
    seconds: float
    peak_mib: float
    lines: list[Line]

    def first(self, *words: str) -> float:
        """Seconds until a line held one of these words."""
        return next(line.seconds for line in self.lines if any(w in line.text for w in words))

    def last(self, *words: str) -> float:
        found = [line.seconds for line in self.lines if any(w in line.text for w in words)]
        return found[-1]

    def peak_until(self, seconds: float) -> float:
        """Most memory that it was seen with so far."""
        return max(line.mib for line in self.lines if line.seconds <= seconds)


def watch(module: str, *arguments: str, log: Path) -> Watched:
    """Run `python -m module` to its end.

    Raises:
        SystemExit: It failed; its output is in `log`.
    """
    command = [sys.executable, "-u", "-m", module, *arguments]
    began, lines = time.monotonic(), list[Line]()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=out, text=True, env=environment()
        )
        assert process.stdout is not None
        try:
            for text in process.stdout:
                out.write(text)
                out.flush()
                seconds, mib = time.monotonic() - began, resident_mib(process.pid)
                lines.append(Line(seconds=seconds, mib=mib, text=text.rstrip()))
        except BaseException:
            process.terminate()  # as who runs this is ended: it closes its cluster
            process.wait()
            raise
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)

    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: see {log}")
    return Watched(seconds=time.monotonic() - began, peak_mib=usage.ru_maxrss / 1024, lines=lines)


def environment() -> dict[str, str]:
    """Without a surrounding cluster or server."""
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def resident_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
    except (OSError, IndexError):
        return 0.0


def plain(commands: Sequence[str]) -> float:
    """Seconds of a program that is not ours."""
    began = time.monotonic()
    subprocess.run(commands, check=True, capture_output=True, timeout=600)
    return time.monotonic() - began

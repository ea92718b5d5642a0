"""Storage that refuses, and storage that comes back."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator import writable
from orchestrator.errors import StorageError
from orchestrator.writable import outwait, refusal

WAIT = """
import resource, sys
from pathlib import Path
from orchestrator import writable

writable.PAUSE_S = 0.05
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited))  # as a disk with a page left
try:
    print(writable.outwait(Path(sys.argv[1]), float(sys.argv[2]), lambda t: print(t, flush=True)))
except Exception as error:
    print(type(error).__name__, error)
"""


def waiting(folder: Path, minutes: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WAIT, str(folder), str(minutes)], stdout=subprocess.PIPE, text=True
    )


def test_a_folder_that_can_be_written(tmp_path: Path):
    assert refusal(tmp_path) is None
    assert refusal(tmp_path / "to" / "come") is None
    assert not outwait(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writable, "PAUSE_S", 0.01)
    assert refusal(Path("/proc")) is not None
    said: list[str] = []
    with pytest.raises(StorageError, match="storage: cannot write /proc"):
        outwait(Path("/proc"), 0.001, said.append)
    assert len(said) == 1
    assert said[0].endswith("it is tried again for 0.001 minutes")


def test_one_that_comes_back(tmp_path: Path):
    process = waiting(tmp_path, 1)
    assert process.stdout is not None
    began = process.stdout.readline()
    assert f"cannot write {tmp_path}: " in began
    assert "tried again for 1 minutes" in began
    limits = psutil.Process(process.pid)
    limits.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rest, _ = process.communicate(timeout=60)
    assert rest.splitlines() == [f"storage: {tmp_path} can be written again", "True"]
    assert list(tmp_path.iterdir()) == []


def test_one_that_does_not(tmp_path: Path):
    rest, _ = waiting(tmp_path, 0.003).communicate(timeout=60)
    assert rest.splitlines()[-1].startswith(f"StorageError storage: cannot write {tmp_path}: ")

"""A process that does nothing for too long ends, and says where it stood."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.watchdog import Watchdog, hung

HANGS = """
import ctypes, sys, threading, time
from pathlib import Path
from orchestrator.watchdog import Watchdog

def run_job():
    for _ in range(int(sys.argv[3])):
        watchdog.beat()
        time.sleep(0.2)
    wait = {"sleep": time.sleep, "lock": ctypes.PyDLL(None).sleep}[sys.argv[2]]
    wait(100)

with Watchdog(1, Path(sys.argv[1]) / "worker0.txt") as watchdog:
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    run_job()
"""


def start(folder: Path, how: str, beats: int = 0) -> int:
    command = [sys.executable, "-c", HANGS, str(folder), how, str(beats)]
    return subprocess.run(command, check=False, timeout=60).returncode


@pytest.mark.parametrize("how", ["sleep", "lock"])
def test_it_ends_and_says_where_it_stood(how: str, tmp_path: Path) -> None:
    # "lock": in C, and without letting go of the interpreter, so that no Python thread could act
    folder = tmp_path / "hung"
    assert start(folder, how) == 1
    assert hung(folder) == f"worker0 in run_job (<string>:11); all threads: {folder}"


def test_each_beat_gives_it_the_whole_time_again(tmp_path: Path) -> None:
    began = time.monotonic()
    assert start(tmp_path, "sleep", beats=10) == 1
    # two seconds of beats, the last of them a beat before their end, and then the limit
    assert time.monotonic() - began >= 2.5


def test_what_ends_in_time_leaves_nothing_behind(tmp_path: Path) -> None:
    with Watchdog(0.05, tmp_path / "hung" / "worker0.txt") as watchdog:
        watchdog.beat()
    time.sleep(0.2)
    assert hung(tmp_path / "hung") is None
    assert list((tmp_path / "hung").iterdir()) == []
    assert hung(tmp_path / "nowhere") is None


def test_of_several_times_the_last_is_told(tmp_path: Path) -> None:
    assert start(tmp_path, "sleep") == 1
    note = tmp_path / "worker0.txt"
    note.write_text(note.read_text().replace("run_job", "an_earlier_one"))
    assert start(tmp_path, "sleep") == 1
    assert "worker0 in run_job" in (hung(tmp_path) or "")


def test_a_note_that_cannot_be_written_does_not_stop_the_work(tmp_path: Path) -> None:
    (tmp_path / "hung").write_text("a file")
    with Watchdog(60, tmp_path / "hung" / "worker0.txt") as watchdog:
        watchdog.beat()

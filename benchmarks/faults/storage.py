"""What may happen to the file system that holds a campaign. It is for real, and undone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.scene import NotNow, Scene

MOST_FILL = 4 << 30
"""A file system with more room than this is not filled."""
SECONDS = (5.0, 15.0)
"""How long it lasts, drawn from this range."""


def fill_disk(scene: Scene) -> str:
    """The file system that holds the campaign."""
    free = shutil.disk_usage(scene.storage).free
    if free > MOST_FILL:
        raise NotNow(f"{free >> 30} GiB are free, and no more than {MOST_FILL >> 30} are filled")
    filler, seconds = scene.storage / "filler", scene.draws.uniform(*SECONDS)
    try:
        with filler.open("wb", buffering=0) as file:
            _fill(file)
        time.sleep(seconds)
    finally:
        filler.unlink(missing_ok=True)
    return f"no space left for {seconds:.0f} s"


def forbid_writes(scene: Scene) -> str:
    """Read-only, as a file system is that met an error: what is opened now may not be written.
    Files that are open already, such as the campaign's lock, keep their rights."""
    folder, seconds = str(scene.storage), scene.draws.uniform(*SECONDS)
    _ask("mount", "--bind", folder, folder)
    try:
        _ask("mount", "-o", "remount,bind,ro", folder)
        time.sleep(seconds)
    finally:
        # what was opened for reading meanwhile may stay open
        subprocess.run(["umount", "--lazy", folder], check=True)
    return f"the storage is read-only for {seconds:.0f} s"


def freeze(scene: Scene) -> str:
    """Whoever writes waits, as for a file server that does not answer."""
    mounted, seconds = mount_point(scene.storage), scene.draws.uniform(*SECONDS)
    if mounted.stat().st_dev == Path("/").stat().st_dev:
        raise NotNow("the file system of the whole machine is not frozen")
    _ask("fsfreeze", "--freeze", str(mounted))
    try:
        time.sleep(seconds)
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(mounted)], check=True)
    return f"whatever is written to the storage waits for {seconds:.0f} s"


def mount_point(path: Path) -> Path:
    """Of the file system that holds a file or folder."""
    return path if path.is_mount() else mount_point(path.parent)


def _ask(*command: str) -> None:
    """What this machine, its file system or its user may not have."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NotNow(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        raise NotNow(done.stderr.strip())


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

"""Storage that refuses to be written for a while: how that looks, and waiting for it.

A disk is full until somebody clears it, a file system is read-only until it is mounted anew, a file
server restarts. A training that is begun again meanwhile fails again within seconds, and what is
counted as an attempt should have had a chance.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import storage_error

logger = logging.getLogger(__name__)

PAUSE_S = 2.0
"""Between two looks: each writes a little, and a training that stands costs whole machines."""
PROBE_BYTES = 1 << 20
"""As a small state has: a disk that takes a few bytes more may still be full."""


def refusal(folder: Path) -> OSError | None:
    """Why a folder that exists, or the nearest one above it, cannot be written; None if it can.

    A file of a megabyte is written there and removed. It waits as long as the file system does.
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def outwait(folder: Path, minutes: float, say: Callable[[str], None] = logger.warning) -> bool:
    """Wait until a folder can be written.

    Args:
        folder: It, or one above it, exists.
        minutes: How long at most.
        say: Hears of it when the waiting begins, and when it is over.

    Returns:
        Whether it had to be waited for.

    Raises:
        StorageError: It could not be written all the time.
    """
    deadline, waited = time.monotonic() + 60 * minutes, False
    while (error := refusal(folder)) is not None:
        said = storage_error(folder, error)
        if time.monotonic() >= deadline:
            raise said from error
        if not waited:
            waited = True
            say(f"{said}; it is tried again for {minutes:g} minutes")
        time.sleep(PAUSE_S)
    if waited:
        say(f"storage: {folder} can be written again")
    return waited

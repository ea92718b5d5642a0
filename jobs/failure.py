"""From an exception to a message and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

PLACES = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "the link leads to itself",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}
"""What can be wrong with a place on disk, wherever it is met."""


def run_command(command: Callable[..., int], *args: Any) -> int:
    """Call a command and explain its errors.

    Errors of ours are printed as they are. Anything else is a defect and keeps its traceback,
    except what a path that was given, or a full disk, can do anywhere.
    """
    from lowrank.errors import LowRankError
    from orchestrator.cluster import set_environment
    from orchestrator.errors import CampaignError

    set_environment()
    logging.basicConfig(
        level=os.environ.get("LOWRANK_LOG", "WARNING"), format="%(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("mlflow", "alembic", "ray", "transformers", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        return command(*args)
    except CampaignError as error:
        _say(str(error))
        return error.exit_code
    except LowRankError as error:
        _say(str(error))
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except OSError as error:
        if error.errno not in PLACES:
            raise
        _say(f"{PLACES[error.errno]}: {error.filename or 'while writing'!s:.300}")
        return 1


def _say(message: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[bold red]error[/bold red]", end=" ")
    console.print(message, markup=False)
    sys.stderr.flush()

"""Python in a process that has nothing of this one, but can import this package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_fresh(
    arguments: Sequence[str], folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter to its end, without the network.

    Args:
        arguments: Of the interpreter.
        folder: Where it runs; here by default.
        variables: Of its environment, beside those of this process.

    Returns:
        Exit status and text of both outputs; a status other than 0 is no error here.
    """
    # this package, wherever it was imported from
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | settings | variables,
    )

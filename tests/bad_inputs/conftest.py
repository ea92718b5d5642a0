from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a folder, in the place of the one before."""

    def copied(folder: Path) -> Path:
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "fresh")
        return tmp_path / "fresh"

    return copied

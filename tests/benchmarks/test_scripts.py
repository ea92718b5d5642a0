"""What the scripts take from the packages is there: they run rarely, and by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_finds_its_imports(script: Path):
    assert callable(runpy.run_path(str(script))["main"])

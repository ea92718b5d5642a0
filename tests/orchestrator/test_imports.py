"""What a process that loads models looks through at each import."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.imports import imports_restored


@pytest.mark.parametrize("fails", [False, True])
def test_places_and_code_of_models_are_gone_afterwards(fails: bool, tmp_path: Path):
    (tmp_path / "stays_here.py").write_text("VALUE = 3")
    path, places = sys.path, list(sys.path)
    try:
        with imports_restored():
            sys.path = [str(tmp_path), *sys.path]
            import stays_here  # type: ignore[import-not-found]

            sys.modules["code_model_0123"] = ModuleType("code_model_0123")
            assert str(tmp_path) in sys.path_importer_cache
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert sys.path is path
    assert sys.path == places
    assert str(tmp_path) not in sys.path_importer_cache
    assert "code_model_0123" not in sys.modules
    assert sys.modules.pop("stays_here") is stays_here

"""Every spec that ships is right, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import jobs
from jobs.__main__ import app
from orchestrator.spec_io import load_spec

SPECS = sorted(Path(jobs.__file__).parent.joinpath("specs").glob("*.y*ml"))


def test_there_are_specs():
    assert "demo" in {path.stem for path in SPECS}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_validates(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0, result.output
    spec = load_spec(path)
    assert spec.name == path.stem
    for task in spec.tasks:
        assert f"  {task.name} ({task.kind}): " in result.output
    assert list(tmp_path.iterdir()) == []

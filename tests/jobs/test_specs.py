"""Every spec that ships is right, from any folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import jobs
from jobs.__main__ import app
from orchestrator.spec_io import load_spec

RECIPE = re.compile(r'^# +--set "(.+)"$', re.MULTILINE)
"""An override that the comments of a spec recommend."""

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


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_what_its_comments_recommend_validates(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    recipes = RECIPE.findall(path.read_text(encoding="utf-8"))
    for name in re.findall(r"[\w/.-]+\.(?:tsv|txt)", " ".join(recipes)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    spec = load_spec(path, recipes)
    given = [task.data.train for task in spec.tasks if task.data.source == "files"]
    assert len(given) == len(recipes)
    assert all(train.startswith(str(tmp_path)) for train in given)
    assert len(recipes) == {"demo": 0, "encoders": 3}.get(path.stem, 1)

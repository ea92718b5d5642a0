"""The `lowrank` command in the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from jobs.__main__ import app

Lowrank = Callable[..., Result]


@pytest.fixture
def lowrank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lowrank:
    """The command, in an empty folder of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def refused(result: Result, code: int) -> str:
    """The message of a command that must have failed with nothing else said."""
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error ")
    assert "Traceback" not in result.stderr
    return result.stderr.removeprefix("error ").rstrip("\n")

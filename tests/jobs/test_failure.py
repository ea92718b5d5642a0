"""From an exception to a message and an exit code."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from jobs.failure import run_command
from lowrank.errors import DensityError, ExportError
from orchestrator.errors import DataError, SpecError, TrackingError


def raising(error: BaseException) -> Any:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SpecError("a.yaml", 3, ["a.yaml:3: one", "a.yaml:4: two"]), 2, "a.yaml:3: one\na.yaml:4"),
        (DataError("no rows [bold]here[/bold]"), 2, "no rows [bold]here[/bold]"),
        (TrackingError("no server"), 1, "no server"),
        (DensityError("0 < density"), 2, "0 < density"),
        (ExportError("damaged"), 1, "damaged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "full", "/there"), 1, "no space left on the device: /there"),
        (OSError(errno.ENAMETOOLONG, "long", "x" * 5000), 1, "the name is too long: xxx"),
        (PermissionError(errno.EACCES, "no", "/there"), 1, "no permission: /there"),
    ],
)
def test_what_went_wrong_in_a_sentence(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert run_command(raising(error)) == code
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error {message}")
    assert shown.out == ""


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EIO, "disk"), KeyError("x")])
def test_a_defect_keeps_its_traceback(error: Exception):
    with pytest.raises(type(error)):
        run_command(raising(error))


def test_arguments_and_exit_code_pass_through():
    assert run_command(lambda a, b: a + b, 3, 4) == 7

"""Every declared bad input gives a clear error, changes nothing, and is on the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_inputs.case import LONGEST, BadInput, outcome
from tests.bad_inputs.page import CASES, HEAD, PAGE, row


@pytest.fixture(scope="module")
def rows() -> list[str]:
    return PAGE.read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input(case: BadInput, rows: list[str], tmp_path: Path) -> None:
    found = outcome(case, tmp_path)
    assert found.status == case.status, found.message
    assert found.message
    assert len(found.message) < LONGEST
    if case.status:
        assert not found.changed
    assert row(case, found) in rows, "python -m tests.bad_inputs writes the page again"


def test_the_page_shows_nothing_else(rows: list[str]) -> None:
    assert "".join(rows).startswith(HEAD)
    shown = [line.split(" | ")[0].removeprefix("| ") for line in rows if line.startswith("| ")]
    assert [what for what in shown if what != "input"] == [case.what for case in CASES]
    assert len({case.name for case in CASES}) == len(CASES)

"""One campaign of made records, and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.results.pages import (
    read,
    write,
)
from tests.orchestrator.results_factory import (
    FakeReader,
    make_spec,
)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For pages of which only the text matters."""
    monkeypatch.setattr("orchestrator.results.page.write_plots", lambda results, folder: {})


@pytest.fixture(scope="module")
def reader() -> FakeReader:
    return FakeReader(make_spec())


@pytest.fixture(scope="module")
def folder(reader: FakeReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(read(reader), folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "page.md").read_text()

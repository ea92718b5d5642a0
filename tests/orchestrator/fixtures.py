"""Fixtures that the tests of `orchestrator` and of `jobs` share; their conftests import these."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster import set_environment
from tests.orchestrator.small import Family, family, one_core

# as the command line does, before mlflow and ray are imported
set_environment()


@pytest.fixture(scope="module", autouse=True)
def on_one_core() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A tiny GPT-2 on characters."""
    return family("lm", tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A tiny BERT on two classes."""
    return family("classes", tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A tiny BERT on the likeness of two texts."""
    return family("scores", tmp_path_factory.getbasetemp())


@pytest.fixture(params=["lm", "classes", "scores"])
def either(request: pytest.FixtureRequest) -> Family:
    return request.getfixturevalue(request.param)


@functools.cache
def empty_store(folder: Path) -> Path:
    """An MLflow database with its tables: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = folder / "empty-mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """URI of a store of this test's own, where a campaign with storage `tmp_path` looks."""
    import mlflow

    shutil.copy(empty_store(tmp_path_factory.getbasetemp()), tmp_path / "mlflow.db")
    yield f"sqlite:///{tmp_path / 'mlflow.db'}"
    # both are settings of the whole process
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


@pytest.fixture
def bare_environment() -> dict[str, str]:
    """For fresh interpreters that must not find the repository, or the network."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }

"""A spec for other machines: paths are theirs, and nothing that is only right here is sent."""

from __future__ import annotations

import re

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec_io import dump_spec, load_spec
from tests.orchestrator.spec_texts import write_spec

SHARED = "storage=/shared/runs"


def load(folder, *overrides):
    return load_spec(write_spec(folder), [SHARED, *overrides], elsewhere=True)


def refused(folder, *overrides) -> str:
    with pytest.raises(SpecError) as caught:
        load(folder, *overrides)
    return str(caught.value)


def test_what_is_here_and_absolute_passes_and_loads_again_as_it_was(tmp_path):
    spec = load(tmp_path, "seed=5")
    assert (spec.seed, spec.storage) == (5, "/shared/runs")
    assert spec.tasks[1].data.train == str(tmp_path / "train.tsv")
    (tmp_path / "sent.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "sent.yaml") == spec


def test_absolute_paths_need_not_exist_here(tmp_path):
    spec = load(
        tmp_path, "tasks.sst.data.train=/shared/train.tsv", "tasks.sst.model={pretrained: /s/bert}"
    )
    assert spec.tasks[1].data.train == "/shared/train.tsv"
    assert spec.tasks[1].model.pretrained == "/s/bert"
    with pytest.raises(SpecError, match="file not found"):
        load_spec(write_spec(tmp_path), ["tasks.sst.data.train=/shared/train.tsv"])


def test_relative_ones_must(tmp_path):
    assert "file not found" in refused(tmp_path, "tasks.sst.data.train=other.tsv")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storage", "runs"),
        ("storage", "./runs"),
        ("tracking.uri", "sqlite:///runs/mlflow.db"),
        ("tracking.uri", "mlruns"),
        ("tracking.registry", "some/folder"),
    ],
)
def test_what_is_written_to_must_be_absolute(tmp_path, field, value):
    message = refused(tmp_path, f"{field}={value}")
    assert message == (
        f"--set {field}: must be an absolute path, the same on every node of the cluster, got "
        f"{value}"
    )


def test_the_default_storage_is_relative(tmp_path):
    text = re.sub(r"(?m)^storage:.*\n", "", write_spec(tmp_path).read_text())
    with pytest.raises(SpecError, match=r"storage: must be an absolute path.* got runs$"):
        load_spec(write_spec(tmp_path, text), elsewhere=True)


@pytest.mark.parametrize(
    "uri",
    [
        "http://mlflow:5000",
        "sqlite:////shared/mlflow.db",
        "postgresql://mlflow@db:5432/mlflow",
        "databricks",
        "file:/shared/mlruns",
    ],
)
def test_servers_and_absolute_stores_pass(tmp_path, uri):
    assert load(tmp_path, f"tracking.uri={uri}").tracking.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hunter2@mlflow:5000",
        "https://hunter2@mlflow",
        "postgresql+psycopg2://mlflow:hunter2@db/mlflow",
        "postgresql://db/mlflow?user=me&password=hunter2",
        "http://me:hun/ter2@mlflow:5000",
    ],
)
@pytest.mark.parametrize("field", ["tracking.uri", "tracking.registry"])
def test_a_secret_is_not_sent_and_not_shown(tmp_path, field, uri):
    message = refused(tmp_path, f"{field}={uri}")
    assert message.startswith(f"--set {field}: holds a user or password")
    assert "ter2" not in message
    assert "***" in message


def test_a_secret_is_found_wherever_it_stands(tmp_path):
    message = refused(tmp_path, "tasks.sst.model={pretrained: 'https://me:hunter2@hub/bert'}")
    assert "tasks.sst.model" in message or "model.pretrained" in message
    assert "hunter2" not in message


def test_an_invalid_spec_is_explained_as_ever(tmp_path):
    assert refused(tmp_path, "search.density=[1.5]").startswith("--set search.density")

"""Relative paths: beside the spec first, then in the current folder, absolute afterwards."""

from __future__ import annotations

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec_io import load_spec
from tests.orchestrator.spec_texts import VALID, broken, write_spec


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "specs"
    folder.mkdir()
    return folder


def test_beside_the_spec_comes_first(cwd, home):
    (cwd / "train.tsv").touch()
    assert load_spec(write_spec(home)).tasks[1].data.train == str(home / "train.tsv")


def test_then_the_current_folder(cwd, home):
    (cwd / "other.tsv").touch()
    spec = load_spec(write_spec(home, broken("train.tsv", "other.tsv")))
    assert spec.tasks[1].data.train == str(cwd / "other.tsv")


def test_a_spec_named_by_a_relative_path(cwd, home):
    write_spec(home)
    spec = load_spec("../specs/spec.yaml")
    assert spec.tasks[1].data.train == str(home / "train.tsv")
    with pytest.raises(SpecError) as caught:
        load_spec("../specs/spec.yaml", ["seed=x"])
    assert caught.value.path == "../specs/spec.yaml"


def test_validation_and_test_files_too(cwd, home):
    text = broken("train: train.tsv", "train: train.tsv, validation: no.tsv, test: ./train.tsv")
    with pytest.raises(SpecError, match=r"data\.validation: file not found"):
        load_spec(write_spec(home, text))
    (home / "no.tsv").touch()
    data = load_spec(write_spec(home, text)).tasks[1].data
    assert (data.validation, data.test) == (str(home / "no.tsv"), str(home / "train.tsv"))


def test_absolute_and_home_paths(cwd, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    write_spec(home)
    for name in (str(home / "train.tsv"), "~/train.tsv"):
        spec = load_spec(home / "spec.yaml", [f"tasks.sst.data.train={name}"])
        assert spec.tasks[1].data.train == str(home / "train.tsv")
    with pytest.raises(SpecError) as caught:
        load_spec(home / "spec.yaml", [f"tasks.sst.data.train={home}/no"])
    assert str(caught.value).endswith(f"file not found: {home}/no")


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("models/mini", "{home}/models/mini"),
        ("owner/name", "owner/name"),
        ("bert-base", "bert-base"),
        ("package:mini", "package:mini"),
    ],
)
def test_pretrained_is_a_folder_only_where_one_exists(cwd, home, name, resolved):
    (home / "models" / "mini").mkdir(parents=True)
    spec = load_spec(write_spec(home, broken('"package:mini"', name)))
    assert spec.tasks[1].model.pretrained == resolved.format(home=home)


@pytest.mark.parametrize("name", ["./mini", "../mini", "/none/mini"])
def test_what_can_only_be_a_folder_must_exist(cwd, home, name):
    with pytest.raises(SpecError, match=r":12: tasks\[1\]\.model\.pretrained: folder not found"):
        load_spec(write_spec(home, broken('"package:mini"', name)))


def test_folders_and_patterns_of_a_datasets_source(cwd, home):
    for folder in ("corpus", "csv"):
        (home / folder).mkdir()
        (home / folder / "a.csv").touch()
    path = write_spec(home)
    data = "tasks.sst.data={{source: datasets, path: {}, data_files: {{train: {}}}}}"

    def load(*names):
        found = load_spec(path, [data.format(*names)]).tasks[1].data
        return found.path, found.data_files["train"]

    assert load("corpus", "corpus/*.csv") == (f"{home}/corpus", f"{home}/corpus/*.csv")
    assert load("csv", "csv/a.csv") == ("csv", f"{home}/csv/a.csv")
    assert load("owner/set", "data/*.csv") == ("owner/set", "data/*.csv")


def test_a_folder_with_the_tasks_of_glue(cwd, home):
    (home / "glue" / "sst2").mkdir(parents=True)
    path = write_spec(home)
    data = "tasks.sst.data={{source: glue, task: sst2, path: {}}}"
    paths = [load_spec(path, [data.format(p)]).tasks[1].data.path for p in ("glue", "owner/glue")]
    assert paths == [f"{home}/glue", "owner/glue"]
    task = load_spec(path, ["tasks.sst.data={source: glue, task: sst2}"]).tasks[1]
    assert (task.data.path, task.metric) == ("nyu-mll/glue", "accuracy")


@pytest.mark.parametrize(
    ("storage", "absolute"),
    [
        ("runs", "{cwd}/runs"),
        ("./a/../b/", "{cwd}/b"),
        ("/data/runs", "/data/runs"),
        ("file:///data/runs", "/data/runs"),
        ("s3://bucket/runs", "s3://bucket/runs"),
    ],
)
def test_storage(cwd, home, storage, absolute):
    tracking = "tracking: {uri: 'http://host'}\n"  # without one a bucket is refused
    spec = load_spec(write_spec(home, VALID + f"storage: {storage}\n{tracking}"))
    assert spec.storage == absolute.format(cwd=cwd)


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{cwd}/mlflow.db"),
        ("sqlite:///a/m.db?timeout=3", "sqlite:///{cwd}/a/m.db?timeout=3"),
        ("sqlite+pysqlite:///m.db", "sqlite+pysqlite:///{cwd}/m.db"),
        ("sqlite:////abs/m.db", "sqlite:////abs/m.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("mlruns", "{cwd}/mlruns"),
        ("/abs/mlruns", "/abs/mlruns"),
        ("databricks", "databricks"),
        ("https://host:5000", "https://host:5000"),
        ("postgresql://me:pw@host/db", "postgresql://me:pw@host/db"),
    ],
)
def test_tracking_uris(cwd, home, uri, absolute):
    spec = load_spec(write_spec(home), [f"tracking={{uri: '{uri}', registry: '{uri}'}}"])
    expected = absolute.format(cwd=cwd)
    assert (spec.tracking.uri, spec.tracking.registry) == (expected, expected)


@pytest.mark.parametrize("value", ['"a\\0b"', "''", "x" * 5000, "~nobody-here/x"])
def test_strange_names_are_errors_not_crashes(cwd, home, value):
    with pytest.raises(SpecError, match="file not found"):
        load_spec(write_spec(home), [f"tasks.sst.data.train={value}"])


@pytest.mark.parametrize(
    "tasks", ["3", "[3]", "[{kind: classification, data: 3, model: 4}]", "{a: {data: {}}}"]
)
def test_wrong_types_are_left_to_the_validation(cwd, home, tasks):
    with pytest.raises(SpecError, match="must be a"):
        load_spec(write_spec(home), [f"tasks={tasks}"])

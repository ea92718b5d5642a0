"""GLUE's tasks by name, read from a local folder in the form of the hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from orchestrator.data import prepare_data, sources
from orchestrator.data.table_corpus import read_table_corpus
from orchestrator.errors import DataError
from orchestrator.spec_glue import GLUE, Glue
from orchestrator.spec_tasks import HubDataset
from tests.orchestrator.data.tasks import classification_task, regression_task

MRPC = ["not_equivalent", "equivalent"]


@pytest.fixture(autouse=True)
def _offline(tmp_path_factory, monkeypatch) -> None:
    cache = tmp_path_factory.mktemp("hf-cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def glue(task: str, folder: Path) -> Glue:
    return Glue(source="glue", task=task, path=str(folder))


def write(folder: Path, task: str, label: Any, **splits: tuple[int, list[Any]]) -> None:
    """Parquet files as the hub has them; a split is given by its seed and its labels."""
    columns = GLUE[task].text
    features = {column: datasets.Value("string") for column in columns}
    features |= {"label": label, "idx": datasets.Value("int32")}
    (folder / task).mkdir(parents=True, exist_ok=True)
    for split, (seed, labels) in splits.items():
        numbers = range(len(labels))
        rows: dict[str, Any] = {
            column: [f'"a {column} {n} of {seed}' for n in numbers] for column in columns
        }
        rows |= {"label": labels, "idx": list(numbers)}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(str(folder / task / f"{split}-00000-of-00001.parquet"))


def test_validation_is_test_and_validation_is_cut_from_train(tmp_path: Path) -> None:
    """GLUE's own test split, whose labels are not public, is never opened."""
    label = datasets.ClassLabel(names=MRPC)
    labels = [number % 3 % 2 for number in range(80)]
    write(tmp_path, "mrpc", label, train=(0, labels), validation=(1, labels[:20]), test=(2, [-1]))
    corpus = read_table_corpus(glue("mrpc", tmp_path), None, None)
    assert corpus.label_names == MRPC
    held_out = [(f'"a sentence1 {n} of 1', f'"a sentence2 {n} of 1') for n in range(20)]
    assert [row.texts for row in corpus.rows["test"]] == held_out
    assert [row.label for row in corpus.rows["test"]] == labels[:20]
    assert len(corpus.rows["train"]) + len(corpus.rows["validation"]) == 80
    assert 2 <= len(corpus.rows["validation"]) <= 16
    assert corpus.notes["source"] == "GLUE mrpc"
    assert corpus.notes["split_used_as_test"] == "validation"
    assert corpus.notes["cut_from_train"] == ["validation"]
    # by content alone: the same rows whatever their order
    write(tmp_path / "b", "mrpc", label, train=(0, labels), validation=(1, labels[:20]))
    again = read_table_corpus(glue("mrpc", tmp_path / "b"), None, None)
    assert again.rows == corpus.rows


def test_mnli_has_three_classes_and_is_tested_on_what_matches(tmp_path: Path) -> None:
    names = ["entailment", "neutral", "contradiction"]
    labels = [number % 3 for number in range(60)]
    write(
        tmp_path,
        "mnli",
        datasets.ClassLabel(names=names),
        train=(0, labels),
        validation_matched=(1, labels[:9]),
        validation_mismatched=(2, labels[:12]),
        test_matched=(3, [-1, -1]),
    )
    corpus = read_table_corpus(glue("mnli", tmp_path), None, None)
    assert corpus.label_names == names
    assert [row.texts[0] for row in corpus.rows["test"]] == [
        f'"a premise {n} of 1' for n in range(9)
    ]
    assert corpus.notes["split_used_as_test"] == "validation_matched"


def test_stsb_is_a_regression(tmp_path: Path) -> None:
    scores = [number % 11 / 2 for number in range(60)]
    write(
        tmp_path,
        "stsb",
        datasets.Value("float32"),
        train=(0, scores),
        validation=(1, scores[:20]),
        test=(2, [-1.0] * 5),
    )
    task = regression_task(glue("stsb", tmp_path), vocab_size=100)
    prepared = prepare_data(task, tmp_path / "cache", None)
    assert prepared.examples("test").labels.tolist() == scores[:20]
    assert prepared.info["uses_type_ids"] is True


@pytest.mark.parametrize("task", ["cola", "sst2", "qqp", "qnli", "rte"])
def test_each_task_knows_its_columns(tmp_path: Path, task: str) -> None:
    label = datasets.ClassLabel(names=["no", "yes"])
    write(tmp_path, task, label, train=(0, [0, 1] * 20), validation=(1, [1, 0, 1]))
    spec = classification_task(glue(task, tmp_path), vocab_size=100)
    prepared = prepare_data(spec, tmp_path / "cache", None)
    assert prepared.label_names == ["no", "yes"]
    assert prepared.examples("test").labels.tolist() == [1, 0, 1]
    assert prepared.info["uses_type_ids"] == (len(GLUE[task].text) == 2)


def test_classes_are_no_scores(tmp_path: Path) -> None:
    write(tmp_path, "mrpc", datasets.ClassLabel(names=MRPC), train=(0, [0, 1] * 20))
    data = HubDataset(
        source="datasets",
        path=str(tmp_path / "mrpc"),
        splits={"train": "train"},
        text=["sentence1", "sentence2"],
    )
    message = "labels must be scores, but the data set declares the classes not_equivalent, equ"
    with pytest.raises(DataError, match=message):
        read_table_corpus(data, None, None, scores=True)


def test_a_label_that_is_no_number_is_named_with_its_row(tmp_path: Path) -> None:
    labels = ["0.5", "1.5", "2.5"] * 10 + ["much"]
    write(tmp_path, "stsb", datasets.Value("string"), train=(0, labels), validation=(1, labels[:9]))
    with pytest.raises(DataError, match="row 30: the label must be a finite number, got 'much'"):
        read_table_corpus(glue("stsb", tmp_path), None, None, scores=True)


def test_without_a_folder_it_is_a_data_set_of_the_hub(tmp_path: Path) -> None:
    found = sources.plain(Glue(source="glue", task="qnli"))
    assert isinstance(found, HubDataset)
    assert (found.path, found.name, found.data_files) == ("nyu-mll/glue", "qnli", None)
    assert found.splits == {"train": "train", "test": "validation"}
    assert (found.text, found.label) == (["question", "sentence"], "label")
    with pytest.raises(DataError, match="the hub cannot be reached"):
        read_table_corpus(Glue(source="glue", task="qnli", path="nobody/nothing"), None, None)

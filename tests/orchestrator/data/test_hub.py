from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pytest

from orchestrator.data import hub
from orchestrator.data.table_corpus import read_table_corpus
from orchestrator.data.text_corpus import read_text_corpus
from orchestrator.errors import DataError
from orchestrator.spec_tasks import HubDataset
from tests.orchestrator.data.tasks import opinions


@pytest.fixture(autouse=True)
def _offline(tmp_path_factory, monkeypatch) -> None:
    cache = tmp_path_factory.mktemp("hf-cache")  # inside the data folder, it would be data too
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def json_files(folder: Path, **splits: list[dict]) -> HubDataset:
    paths = {}
    for split, rows in splits.items():
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths[split] = str(path)
    names = {split: split for split in splits}
    return HubDataset(source="datasets", path="json", data_files=paths, splits=names)


def labelled(number: int, seed: int = 0) -> list[dict]:
    return [{"text": text, "label": label} for text, label in opinions(number, seed)]


def test_local_builder_with_given_splits(tmp_path: Path) -> None:
    data = json_files(tmp_path, train=labelled(20), validation=labelled(5, 1), test=labelled(5, 2))
    corpus = read_table_corpus(data, None, None)
    assert corpus.label_names == ["bad", "good"]
    assert [len(corpus.rows[split]) for split in corpus.rows] == [20, 5, 5]
    assert [row.texts[0] for row in corpus.rows["test"]] == [text for text, _ in opinions(5, 2)]
    assert corpus.notes["source"] == "datasets"


def test_missing_splits_are_cut_from_train(tmp_path: Path) -> None:
    corpus = read_table_corpus(json_files(tmp_path, train=labelled(100)), None, None)
    assert sum(map(len, corpus.rows.values())) == 100
    assert all(corpus.rows.values())


def test_local_folder_of_csv_with_two_columns_and_a_slice(tmp_path: Path) -> None:
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "class"])
        writer.writerows([f"left {n}", f"right {n}", n % 3] for n in range(30))
    data = HubDataset(
        source="datasets",
        path=str(tmp_path),
        splits={"train": "train[:20]", "test": "train[20:]"},
        text=["a", "b"],
        label="class",
    )
    corpus = read_table_corpus(data, None, None)
    assert corpus.label_names == ["0", "1", "2"]
    assert corpus.rows["test"][0].texts == ("left 20", "right 20")
    assert len(corpus.rows["train"]) + len(corpus.rows["validation"]) == 20


def test_declared_label_names_keep_their_order(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg", "n"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    for split, count in (("train", 2), ("test", 3)):
        part = {name: values[:count] for name, values in rows.items()}
        table = datasets.Dataset.from_dict(part, features=features)
        table.to_parquet(str(tmp_path / f"{split}.parquet"))
    data = HubDataset(source="datasets", path=str(tmp_path), splits={"train": "train"})
    read, names = hub.read_rows(data, "train")
    assert names == ["pos", "neg", "n"]
    assert [row.label for row in read] == ["neg", "pos"]
    with pytest.raises(DataError, match="split 'test', row 2: no label, but -1"):
        hub.read_rows(data, "test")


def test_language_modelling_reads_rows_as_lines(tmp_path: Path) -> None:
    lines = ["", " = Title = \n", "first line", ""]
    splits = {
        split: [{"text": line + split if line else line} for line in lines]
        for split in ("train", "validation", "test")
    }
    corpus = read_text_corpus(json_files(tmp_path, **splits))
    assert corpus.texts["test"] == "\n = Title = \ntest\nfirst linetest\n\n"
    assert corpus.num_documents["test"] == 4


def test_language_modelling_reads_one_column(tmp_path: Path) -> None:
    data = json_files(tmp_path, train=labelled(3)).model_copy(update={"text": ["text", "label"]})
    with pytest.raises(DataError, match="reads one column of text"):
        hub.read_documents(data, "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": "a", "label": "x"}], "column 'text' is missing; columns present: body, label"),
        ([{"text": "a", "class": "x"}], "column 'label' is missing; columns present: text, class"),
        ([{"text": "a", "label": "x"}, {"text": None, "label": "x"}], "row 1: no text"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], "row 1: no label, but None"),
        ([{"text": 1, "label": "x"}], r"row 0: no text, but \(1,\)"),
    ],
)
def test_broken_columns(tmp_path: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(DataError, match=message):
        hub.read_rows(json_files(tmp_path, train=rows), "train")


def test_unknown_split_is_named(tmp_path: Path) -> None:
    data = json_files(tmp_path, train=labelled(3))
    with pytest.raises(DataError, match=r"split 'dev': ValueError: .*dev.*train") as caught:
        hub.read_rows(data, "dev")
    assert isinstance(caught.value.__cause__, ValueError)


def test_splits_without_train() -> None:
    data = HubDataset(source="datasets", path="x", splits={"test": "test"})
    with pytest.raises(DataError, match="`splits` must name the split to train on"):
        read_text_corpus(data)


def test_unreachable_hub_is_named_as_such() -> None:
    data = HubDataset(source="datasets", path="nobody/nothing-of-this-name")
    with pytest.raises(DataError, match=r"the hub cannot be reached .or offline mode is set"):
        hub.read_rows(data, "train")


def test_wrong_path_is_an_explained_error(tmp_path: Path) -> None:
    data = HubDataset(source="datasets", path=str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"cannot load data set '.*absent', split 'train'"):
        hub.read_rows(data, "train")

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from orchestrator.data import prepared
from orchestrator.data.prepared import (
    Examples,
    PreparedData,
    array_name,
    describe,
    write_inventory,
)
from orchestrator.errors import DataError

INFO = {
    "kind": "language-modelling",
    "source": "files",
    "level": "word",
    "vocab_size": 12345,
    "pad_token_id": None,
    "label_names": [],
    "dropped": {"duplicates": 0},
    "splits": {split: {"num_tokens": 1000} for split in ("train", "validation", "test")},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / array_name("train", "tokens"), np.arange(5, dtype=np.uint16))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    write_inventory(tmp_path, "0123456789abcdef", INFO)
    return tmp_path


def test_open_gives_back_what_was_written(folder: Path) -> None:
    prepared = PreparedData.open(folder, verify=True)
    assert prepared.content_hash == "0123456789abcdef"
    assert prepared.info == INFO
    assert prepared.vocab_size == 12345
    assert prepared.pad_token_id is None
    assert prepared.label_names == []
    assert prepared.tokenizer_folder == folder / "tokenizer"
    assert pickle.loads(pickle.dumps(prepared)) == prepared


def test_tokens_are_mapped_and_read_only(folder: Path) -> None:
    tokens = PreparedData.open(folder).tokens("train")
    assert isinstance(tokens, np.memmap)
    assert tokens.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_tokens_are_counted_in_parts(
    folder: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "COUNTED_AT_ONCE", at_once)
    tokens = np.array([3, 1, 3, 12344, 3], dtype=np.uint16)
    np.save(folder / array_name("train", "tokens"), tokens)
    (folder / "data.json").unlink()  # it would list itself
    write_inventory(folder, "0123456789abcdef", INFO)
    counts = PreparedData.open(folder).token_counts("train")
    assert counts.shape == (12345,)
    assert {int(i): int(counts[i]) for i in np.flatnonzero(counts)} == {1: 1, 3: 3, 12344: 1}


@pytest.mark.parametrize("name", ["train.tokens.npy", "tokenizer/tokenizer.json"])
def test_missing_and_resized_files_are_noticed(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=rf"{name} is damaged: .* {size} bytes, got {size + 1}"):
        PreparedData.open(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is damaged: it is missing"):
        PreparedData.open(folder)


def test_changed_content_is_noticed_on_demand(folder: Path) -> None:
    path = folder / "train.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    PreparedData.open(folder)
    with pytest.raises(DataError, match=r"its SHA-256 is not the one in data.json"):
        PreparedData.open(folder, verify=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "data.json is damaged"),
        ("[]", "must be an object with content_hash, info and files"),
        ('{"info": {}, "files": {}}', "must be an object with content_hash, info and files"),
        (
            '{"format": 0, "content_hash": "x", "info": {}, "files": {}}',
            "format must be 1, got 0",
        ),
        ("\x80", "data.json is damaged"),
    ],
)
def test_bad_inventory(folder: Path, content: str, message: str) -> None:
    (folder / "data.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        PreparedData.open(folder)


def test_folder_without_inventory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared data in"):
        PreparedData.open(tmp_path)


def test_what_the_folder_does_not_hold_is_named(folder: Path) -> None:
    prepared = PreparedData.open(folder)
    with pytest.raises(DataError, match="no tokens of split 'dev'"):
        prepared.tokens("dev")
    with pytest.raises(DataError, match=r"no ids of split 'train' in .* language-modelling data"):
        prepared.examples("train")


def test_inventory_is_plain_json(folder: Path) -> None:
    files = json.loads((folder / "data.json").read_text())["files"]
    assert sorted(files) == ["tokenizer/tokenizer.json", "train.tokens.npy"]
    assert all(len(entry["sha256"]) == 64 for entry in files.values())


def test_examples_are_indexed_like_a_list() -> None:
    examples = Examples(
        ids=np.array([5, 6, 7, 8, 9]),
        offsets=np.array([0, 2, 2, 5]),
        type_ids=np.array([0, 1, 0, 0, 1]),
        labels=np.array([3, 1, 2]),
    )
    plain = [(ids.tolist(), types.tolist(), label) for ids, types, label in examples]
    assert plain == [([5, 6], [0, 1], 3), ([], [], 1), ([7, 8, 9], [0, 0, 1], 2)]
    assert len(examples) == 3
    assert examples[-1][2] == 2
    assert isinstance(examples[0][2], int)
    for index in (3, -4):
        with pytest.raises(IndexError, match="0 <= index < 3 must hold"):
            examples[index]


def test_describe_is_one_line_with_the_numbers(folder: Path) -> None:
    line = describe(PreparedData.open(folder))
    assert line == (
        "files, word level, vocabulary 12,345; tokens: train 1,000, validation 1,000, "
        "test 1,000 [0123456789abcdef]"
    )

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from orchestrator.data.text_corpus import read_text_corpus
from orchestrator.errors import DataError
from orchestrator.spec_tasks import PythonDocs
from tests.orchestrator.data.tasks import prose, text_files


def test_given_files_are_kept_to_the_last_character(tmp_path: Path) -> None:
    texts = {"train": "\r\n a\n\n", "validation": "b", "test": "\tc \u2028"}
    corpus = read_text_corpus(text_files(tmp_path, **texts))
    assert corpus.texts == texts
    assert corpus.num_documents == {"train": 1, "validation": 1, "test": 1}


def test_train_alone_is_cut_by_paragraphs(tmp_path: Path) -> None:
    paragraphs = prose(100).split("\n\n")[:-1]
    repeated = "\n\n".join([*paragraphs, *paragraphs[:7]])
    corpus = read_text_corpus(text_files(tmp_path, train=repeated))
    parts = [corpus.texts[split].split("\n\n")[:-1] for split in corpus.texts]
    assert sorted(chain(*parts)) == sorted(paragraphs)
    assert [len(part) for part in parts] == list(corpus.num_documents.values())
    assert corpus.notes["dropped"]["duplicates"] == 7
    assert corpus.notes["cut_from_train"] == ["validation", "test"]


def test_only_the_missing_split_is_cut(tmp_path: Path) -> None:
    corpus = read_text_corpus(text_files(tmp_path, train=prose(100), validation=prose(9, seed=1)))
    assert corpus.texts["validation"] == prose(9, seed=1)
    assert corpus.notes["cut_from_train"] == ["test"]
    assert corpus.num_documents["train"] + corpus.num_documents["test"] == 100


def test_one_line_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.txt: at least 3 different documents .* found 1"):
        read_text_corpus(text_files(tmp_path, train="only one line\n"))


def test_identical_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train and test must differ, but .*train.txt and .*test"):
        read_text_corpus(text_files(tmp_path, train="a", validation="b", test="a"))


def test_shared_long_lines_are_recorded_and_warned_about(tmp_path: Path, caplog) -> None:
    shared = "x" * 100
    files = text_files(tmp_path, train=f"{shared}\n", validation=f"{shared}\n{'y' * 100}", test="z")
    overlap = read_text_corpus(files).notes["long_line_overlap"]
    assert overlap["validation"] == {"num_long_lines": 2, "num_in_train": 1, "share": 0.5}
    assert overlap["test"]["share"] == 0
    assert "50.0 % of the long lines of validation" in caplog.text
    assert "test" not in caplog.text


def test_python_docs_are_split_without_a_shared_document() -> None:
    corpus = read_text_corpus(PythonDocs(source="python-docs"))
    assert corpus.num_documents["train"] > 1000
    share = corpus.num_documents["test"] / sum(corpus.num_documents.values())
    assert 0.08 < share < 0.12


def test_digest_sees_where_a_split_ends(tmp_path: Path) -> None:
    one = text_files(tmp_path / "one", train="ab", validation="c", test="d")
    other = text_files(tmp_path / "other", train="a", validation="bc", test="d")
    digests = [read_text_corpus(files).content_digest() for files in (one, other, one)]
    assert digests[0] == digests[2] != digests[1]

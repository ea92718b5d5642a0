from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from orchestrator.data.table_corpus import Labelled, TableCorpus, read_table_corpus
from orchestrator.errors import DataError
from orchestrator.spec_tasks import PythonDocs
from tests.orchestrator.data.tasks import opinions, table, table_files


def read(
    folder: Path, max_train: int | None = None, max_eval: int | None = None, **tables: str
) -> TableCorpus:
    return read_table_corpus(table_files(folder, **tables), max_train, max_eval)


def test_given_splits_lose_what_a_later_split_holds(tmp_path: Path) -> None:
    corpus = read(
        tmp_path,
        train=table(("a", "0"), ("b", "1"), ("in test", "0"), ("in valid", "1"), ("a", "0")),
        validation=table(("in valid", "1"), ("in test", "1")),
        test=table(("in test", "0")),
    )
    assert corpus.rows == {
        "train": [Labelled(("a",), 0), Labelled(("b",), 1), Labelled(("a",), 0)],
        "validation": [Labelled(("in valid",), 1)],
        "test": [Labelled(("in test",), 0)],
    }
    assert corpus.notes["dropped"] == {
        "empty_text": 0,
        "validation_in_test": 1,
        "train_in_validation_or_test": 2,
        "duplicates": 0,
    }
    assert corpus.notes["cut_from_train"] == []


def test_missing_splits_are_cut_without_overlap(tmp_path: Path) -> None:
    rows = opinions(300)
    corpus = read(tmp_path, train=table(*rows, *rows[:50]))
    texts = [{row.texts for row in corpus.rows[split]} for split in corpus.rows]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 300
    assert corpus.notes["dropped"]["duplicates"] == 50
    assert corpus.notes["cut_from_train"] == ["validation", "test"]
    labels = dict(rows)
    for split in corpus.rows.values():
        assert all(corpus.label_names[row.label] == labels[row.texts[0]] for row in split)


def test_one_missing_split_is_cut_beside_the_given_one(tmp_path: Path) -> None:
    rows = opinions(200)
    corpus = read(tmp_path, train=table(*rows), test=table(*rows[:20]))
    assert [row.texts[0] for row in corpus.rows["test"]] == [text for text, _ in rows[:20]]
    assert corpus.notes["dropped"]["train_in_validation_or_test"] == 20
    assert 5 < len(corpus.rows["validation"]) < 35
    held_out = {row.texts for row in corpus.rows["test"]}
    assert held_out.isdisjoint(row.texts for row in corpus.rows["validation"])
    assert held_out.isdisjoint(row.texts for row in corpus.rows["train"])


def test_empty_texts_are_dropped_counted_and_reported(tmp_path: Path, caplog) -> None:
    corpus = read(
        tmp_path,
        train=table(("a", "0"), (" ", "1"), ("b", "1")),
        validation=table(("c", "1"), ("", "1")),
        test=table(("d", "1")),
    )
    assert corpus.notes["dropped"]["empty_text"] == 2
    assert len(corpus.rows["train"]) == 2
    assert "2 examples have an empty text" in caplog.text


def test_integer_labels_in_numeric_order_others_in_text_order(tmp_path: Path) -> None:
    numbers = table(*((f"text {n}", str(n)) for n in (10, 9, 2)))
    held_out = {"validation": table(("x", "9")), "test": table(("y", "2"))}
    assert read(tmp_path, train=numbers, **held_out).label_names == ["2", "9", "10"]
    mixed = table(("a", "2"), ("b", "10"), ("c", "9"), ("d", "none"))
    assert read(tmp_path, train=mixed, **held_out).label_names == ["10", "2", "9", "none"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([("a", "1"), ("b", "1")], "at least 2 classes, got only '1'"),
        ([("a", "0.5"), ("b", "1"), ("c", "2.25")], "numbers like 0.5; `kind: regression` learns"),
        ([("x", "0"), ("y", "1")], "train must have examples .* none of its 2"),
    ],
)
def test_unusable_training_tables(tmp_path: Path, train: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(
            tmp_path,
            train=table(*train),
            validation=table(("x", "1")),
            test=table(("y", "1")),
        )


def test_label_that_train_does_not_have_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"test \(.*test.tsv\), line 3: every label must occur in train, 'maybe' does not; "
        "labels of train: no, yes",
    ):
        read(
            tmp_path,
            train=table(("a", "yes"), ("b", "no")),
            validation=table(("c", "yes")),
            test=table(("d", "yes"), ("e", "maybe")),
        )


def test_caps_choose_by_content_and_keep_the_label_numbers(tmp_path: Path) -> None:
    rows = opinions(200)
    tables = {"validation": table(*opinions(50, 1)), "test": table(*opinions(50, 2))}
    corpus = read(tmp_path, 30, 7, train=table(*rows), **tables)
    assert [len(corpus.rows[split]) for split in ("train", "validation", "test")] == [30, 7, 7]
    reordered = read(tmp_path, 30, 7, train=table(*reversed(rows)), **tables)
    assert sorted(corpus.rows["train"]) == sorted(reordered.rows["train"])
    assert read(tmp_path, 1000, None, train=table(*rows), **tables) == read(
        tmp_path, train=table(*rows), **tables
    )


def rate(folder: Path, max_eval: int | None = None, **tables: str) -> TableCorpus:
    return read_table_corpus(table_files(folder, **tables), None, max_eval, scores=True)


def test_scores_stay_numbers(tmp_path: Path) -> None:
    corpus = rate(
        tmp_path,
        train=table(("a", "0"), ("b", "2.25"), ("c", "1e1")),
        validation=table(("d", "-3"), ("e", "0.5")),
        test=table(("f", "1"), ("g", "5.000")),
    )
    assert [row.label for row in corpus.rows["train"]] == [0.0, 2.25, 10.0]
    # a score that training never shows is nothing wrong
    assert corpus.rows["test"] == [Labelled(("f",), 1.0), Labelled(("g",), 5.0)]
    assert corpus.label_names == []


@pytest.mark.parametrize("label", ["four", "nan", "inf", "1,5"])
def test_a_label_that_is_no_number_is_named_with_its_line(tmp_path: Path, label: str) -> None:
    rows = [(f"text {number}", str(number)) for number in range(9)]
    broken = table(*rows[:4], ("here", label), *rows[4:])
    message = rf"train \(.*train.tsv\), line 6: the label must be a finite number, got '{label}'"
    few = {"validation": table(("v", "1"), ("w", "2")), "test": table(("x", "1"), ("y", "2"))}
    with pytest.raises(DataError, match=message):
        rate(tmp_path, train=broken, **few)
    # a cap that would leave the row out does not hide it
    with pytest.raises(DataError, match=rf"test .*, line 6: .* got '{label}'"):
        rate(tmp_path, max_eval=2, train=few["test"], validation=few["validation"], test=broken)


def test_scores_must_differ(tmp_path: Path) -> None:
    """A correlation with a constant is not defined."""
    alike = table(("a", "1"), ("b", "1.0"))
    with pytest.raises(DataError, match=r"test .* at least 2 different scores, got only 1 in 2"):
        rate(tmp_path, train=table(*[(f"t{n}", str(n)) for n in range(40)]), test=alike)


def test_a_cap_must_leave_two_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must leave at least 2 classes in train, 1 leaves 1"):
        read(tmp_path, 1, train=table(*opinions(40)))


def test_python_docs_tell_packages_apart() -> None:
    corpus = read_table_corpus(PythonDocs(source="python-docs", classes=4), None, None)
    assert len(corpus.label_names) == 4
    for label, name in enumerate(corpus.label_names):
        sizes = Counter(
            split for split, rows in corpus.rows.items() for row in rows if row.label == label
        )
        assert 0.7 < sizes["train"] / sizes.total() < 0.9, name


def test_digest_sees_texts_labels_and_splits(tmp_path: Path) -> None:
    rows = opinions(60)
    base = read(tmp_path, train=table(*rows))
    flipped = [(rows[0][0], "good" if rows[0][1] == "bad" else "bad"), *rows[1:]]
    assert base.content_digest() == read(tmp_path, train=table(*rows)).content_digest()
    assert base.content_digest() != read(tmp_path, train=table(*flipped)).content_digest()
    assert base.content_digest() != read(tmp_path, train=table(*rows[1:])).content_digest()

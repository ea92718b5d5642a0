from __future__ import annotations

import hashlib
import random
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.splits import (
    check_not_identical,
    complete,
    cut,
    digest,
    long_line_overlap,
    sample,
    text_hash,
)
from orchestrator.errors import DataError

BOTH = ["validation", "test"]


def alone(text: str) -> tuple[str]:
    return (text,)


def test_text_hash_is_the_sha256_of_the_text() -> None:
    assert text_hash("né") == hashlib.sha256("né".encode()).hexdigest()


@settings(deadline=None)
@given(st.sets(st.text(max_size=5), min_size=3, max_size=60), st.randoms())
def test_cut_is_a_partition_that_order_does_not_change(texts: set[str], draw) -> None:
    ordered = sorted(texts)
    shuffled = draw.sample(ordered, len(ordered))
    splits, _ = complete({"train": ordered}, alone, "corpus")
    again, _ = complete({"train": shuffled}, alone, "corpus")
    assert sorted(chain(*splits.values())) == ordered
    assert all(splits.values())
    assert {split: set(part) for split, part in splits.items()} == {
        split: set(part) for split, part in again.items()
    }


@pytest.mark.parametrize("missing", [BOTH, ["validation"], ["test"]])
def test_cut_gives_a_tenth_to_every_missing_split(missing: list[str]) -> None:
    parts = cut([text_hash(str(n)) for n in range(5000)], missing, "corpus")
    assert set(parts) == {"train", *missing}
    for split in missing:
        assert 0.085 < len(parts[split]) / 5000 < 0.115


@pytest.mark.parametrize("first", ["0", "f"])
def test_no_split_takes_the_last_document_of_another(first: str) -> None:
    hashes = [f"{first}{number}" for number in range(3)]
    assert cut(hashes, BOTH, "corpus") == {"train": [2], "validation": [0], "test": [1]}


def test_documents_keep_their_split_when_the_corpus_grows() -> None:
    small, _ = complete({"train": [str(n) for n in range(1000)]}, alone, "corpus")
    large, _ = complete({"train": [str(n) for n in range(3000)]}, alone, "corpus")
    for split, part in small.items():
        assert set(part) <= set(large[split])


def test_splits_keep_the_original_order() -> None:
    splits, _ = complete({"train": [str(n) for n in range(200)]}, alone, "corpus")
    for part in splits.values():
        assert [int(text) for text in part] == sorted(int(text) for text in part)


def test_duplicates_are_removed_before_the_cut_and_counted() -> None:
    splits, num_duplicates = complete({"train": ["a", "b", "a", "c", "a"]}, alone, "corpus")
    assert num_duplicates == 2
    assert sorted(chain(*splits.values())) == ["a", "b", "c"]


def test_given_splits_are_left_alone() -> None:
    given = {"train": ["a", "a"], "validation": ["b"], "test": ["b"]}
    assert complete(given, alone, "corpus") == (given, 0)


def test_too_few_documents_for_a_cut() -> None:
    with pytest.raises(DataError, match=r"book: at least 3 different documents .* found 1"):
        complete({"train": ["same", "same"]}, alone, "book")
    assert complete({"train": ["a", "b"], "test": ["c"]}, alone, "book")[0]["validation"]


def test_sample_is_a_choice_by_content() -> None:
    texts = [(str(number),) for number in range(300)]
    shuffled = random.Random(1).sample(texts, len(texts))
    chosen = {texts[position] for position in sample(texts, 40)}
    assert len(chosen) == 40
    assert chosen == {shuffled[position] for position in sample(shuffled, 40)}
    assert chosen < {texts[position] for position in sample(texts, 41)}
    assert sample(texts, None) == sample(texts, 300) == list(range(300))


def test_sample_does_not_favour_what_the_cut_takes() -> None:
    texts = [(str(number),) for number in range(4000)]
    kept = [texts[position] for position in sample(texts, 2000)]
    parts = cut([text_hash(*one) for one in kept], BOTH, "corpus")
    assert 0.75 < len(parts["train"]) / 2000 < 0.85


def test_identical_splits_are_refused() -> None:
    origin = {"train": "a.txt", "validation": "b.txt", "test": "c.txt"}
    with pytest.raises(DataError, match=r"validation and test must differ, but b.txt and c.txt"):
        check_not_identical({"train": "x", "validation": "y", "test": "y"}, origin)
    check_not_identical({"train": "x", "validation": "y"}, origin)


def test_long_line_overlap_ignores_short_lines_and_margins() -> None:
    long, other = "x" * 80, "y" * 90
    overlap = long_line_overlap(f"{long}\nshort\n", f"  {long}\n{other}\nshort\n{'z' * 79}\n")
    assert overlap == {"num_long_lines": 2, "num_in_train": 1, "share": 0.5}
    assert long_line_overlap("short", "short")["share"] == 0


def test_digest_knows_where_parts_end() -> None:
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["ab", 1]) == digest(iter(["ab", 1]))

"""Splits by content: the same documents always land in the same split, and never in two.

A document's place follows from the SHA-256 of its text alone, so it does not depend on the
order of the documents, on a seed, or (almost) on which other documents there are.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from orchestrator.errors import DataError

T = TypeVar("T")

SPLITS = ("train", "validation", "test")

CUT_PERCENT = 10
"""Share of the training documents that each missing split receives: 80/10/10 when both are."""

LONG_LINE = 80
"""Characters from which a line that two splits share is hardly a coincidence."""


def text_hash(*texts: str) -> str:
    """SHA-256 of a document, or of the texts of an example, as hex digits."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def digest(parts: Iterable[str | int | float]) -> str:
    """SHA-256 of a sequence; each part with its length, so that borders count."""
    digest = hashlib.sha256()
    for part in parts:
        content = str(part).encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def missing_splits(given: Iterable[str]) -> list[str]:
    """The splits that have to be cut from train."""
    present = set(given)
    return [split for split in SPLITS[1:] if split not in present]


def complete(
    given: Mapping[str, list[T]], texts_of: Callable[[T], tuple[str, ...]], what: str
) -> tuple[dict[str, list[T]], int]:
    """Cut the splits that are not given from train, after removing exact duplicates from it.

    Args:
        given: Documents or examples of the given splits; train is among them.
        texts_of: The texts that make two of them the same.
        what: The corpus in words, for the error.

    Returns:
        All splits, each in its original order, and the number of duplicates removed. Nothing is
        removed when no split is missing.
    """
    missing = missing_splits(given)
    if not missing:
        return dict(given), 0
    first: dict[tuple[str, ...], T] = {}
    for item in given["train"]:
        first.setdefault(texts_of(item), item)
    kept = list(first.values())
    parts = cut([text_hash(*texts) for texts in first], missing, what)
    filled = {split: [kept[position] for position in parts[split]] for split in parts}
    return {**given, **filled}, len(given["train"]) - len(kept)


def cut(hashes: Sequence[str], missing: Sequence[str], what: str) -> dict[str, list[int]]:
    """Divide distinct training documents into train and the missing splits.

    The documents with the smallest hashes go to the missing splits, a tenth of the range of
    hashes to each. A split that stays empty (few documents) takes the next document.

    Args:
        hashes: `text_hash` of each document, all different.
        missing: Splits to cut, a part of `SPLITS[1:]`.
        what: The corpus in words, for the error.

    Returns:
        Positions per split, ascending, train included.

    Raises:
        DataError: When there are too few documents for every split to have one.
    """
    if len(hashes) <= len(missing):
        raise DataError(
            f"{what}: at least {len(missing) + 1} different documents are needed to cut "
            f"{' and '.join(missing)} from train, found {len(hashes)}"
        )
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    ranked = [hashes[position] for position in order]
    parts: dict[str, list[int]] = {}
    start = 0
    for number, split in enumerate(missing):
        border = f"{2**32 * CUT_PERCENT * (number + 1) // 100:08x}"
        still_empty = len(missing) - number  # the splits after this one, and train
        end = min(max(bisect_left(ranked, border), start + 1), len(ranked) - still_empty)
        parts[split] = sorted(order[start:end])
        start = end
    return {"train": sorted(order[start:])} | parts


def sample(texts: Sequence[tuple[str, ...]], limit: int | None) -> list[int]:
    """Positions, ascending, of `limit` items: a choice by content that order cannot change.

    It is independent of the one that `cut` makes: with the same hash, a capped class would keep
    just the documents that go to validation and test.
    """
    if limit is None or limit >= len(texts):
        return list(range(len(texts)))
    hashes = [text_hash("sample", *one) for one in texts]
    return sorted(sorted(range(len(texts)), key=hashes.__getitem__)[:limit])


def check_not_identical(content: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """Refuse two splits with the same content.

    Raises:
        DataError: Naming the two origins.
    """
    names = [split for split in SPLITS if split in content]
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if content[one] == content[other]:
                raise DataError(
                    f"{one} and {other} must differ, but {origin[one]} and {origin[other]} "
                    "have the same content"
                )


def long_line_overlap(train: str, other: str) -> dict[str, float]:
    """How many long lines of one text occur in the training text as well.

    Returns:
        `num_long_lines`, `num_in_train` and `share` (0 when there are no long lines).
    """
    known = set(_long_lines(train))
    lines = _long_lines(other)
    shared = sum(line in known for line in lines)
    return {
        "num_long_lines": len(lines),
        "num_in_train": shared,
        "share": shared / len(lines) if lines else 0.0,
    }


def _long_lines(text: str) -> list[str]:
    stripped = (line.strip() for line in text.split("\n"))
    return [line for line in stripped if len(line) >= LONG_LINE]

"""Labelled texts: what a source of classes or scores holds, divided, cleaned and capped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

from orchestrator.data import hub, python_docs, sources
from orchestrator.data.labels import check_known_labels, label_names_of, scores_of
from orchestrator.data.splits import (
    SPLITS,
    check_not_identical,
    complete,
    digest,
    missing_splits,
    sample,
)
from orchestrator.data.text_files import Row, read_table
from orchestrator.errors import DataError
from orchestrator.spec_tasks import Data, Files, HubDataset, PythonDocs

logger = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """One example: a text or a pair of texts, and the number of its class, or its score."""

    texts: tuple[str, ...]
    label: int | float


@dataclass(frozen=True, kw_only=True, slots=True)
class TableCorpus:
    """Labelled texts per split."""

    rows: dict[str, list[Labelled]]
    label_names: list[str]
    """Of the classes; empty where labels are scores."""
    notes: dict[str, Any]

    def content_digest(self) -> str:
        return digest(self._parts())

    def _parts(self) -> Iterator[str | int | float]:
        for split in SPLITS:
            yield split
            for row in self.rows[split]:
                yield from row.texts
                yield row.label


def read_table_corpus(
    data: Data, max_train: int | None, max_eval: int | None, scores: bool = False
) -> TableCorpus:
    """Read labelled texts, complete the splits, remove what they share, apply the caps.

    An example is recognised by its texts. One that occurs in test is removed from validation
    and train, one that occurs in validation from train; the evaluation splits lose nothing else.

    Args:
        data: Where the texts are.
        max_train: Cap on train.
        max_eval: Cap on validation and on test.
        scores: Whether labels are numbers to predict, not classes.

    Raises:
        DataError: When the source is not as it should be, a label is unknown to train or no
            number, or fewer than two classes or scores or no examples remain.
    """
    source = sources.plain(data)
    given, declared = _rows(source)
    origin = sources.origins(source)
    check_not_identical(given, origin)
    dropped = {"empty_text": _drop_empty(given), **_drop_shared(given)}
    rows, dropped["duplicates"] = complete(given, lambda row: row.texts, sources.described(source))
    limits = {"train": max_train, "validation": max_eval, "test": max_eval}
    if scores:
        names: list[str] = []
        labelled = _scored(rows, declared, origin, limits)
    else:
        names = _class_names(rows, declared, origin, max_train)
        kept = {split: _capped(rows[split], limits[split]) for split in SPLITS}
        labelled = {split: _numbered(kept[split], names) for split in SPLITS}
    return TableCorpus(
        rows=labelled,
        label_names=names,
        notes={
            **sources.notes(data),
            "cut_from_train": missing_splits(given),
            "dropped": dropped,
        },
    )


def _rows(data: PythonDocs | Files | HubDataset) -> tuple[dict[str, list[Row]], list[str] | None]:
    """The rows of the given splits, and the label names that a data set declares, if it does."""
    if isinstance(data, PythonDocs):
        return {"train": python_docs.labelled_docstrings(data.classes)}, None
    given = sources.given_splits(data)
    if isinstance(data, HubDataset):
        read = {split: hub.read_rows(data, name) for split, name in given.items()}
        return {split: rows for split, (rows, _) in read.items()}, read["train"][1]
    rows = {split: read_table(path, data.text, data.label) for split, path in given.items()}
    return rows, None


def _drop_empty(given: dict[str, list[Row]]) -> int:
    """Remove, in place, examples in which a text is blank; returns how many."""
    num_dropped = 0
    for split, rows in given.items():
        given[split] = _kept(rows, [all(text.strip() for text in row.texts) for row in rows], split)
        num_dropped += len(rows) - len(given[split])
    if num_dropped:
        logger.warning("%d examples have an empty text and are left out", num_dropped)
    return num_dropped


def _drop_shared(given: dict[str, list[Row]]) -> dict[str, int]:
    """Remove, in place, what a later split holds as well; returns the counts."""
    texts = {split: {row.texts for row in rows} for split, rows in given.items()}
    test = texts.get("test", set())
    held_out = test | texts.get("validation", set())
    counts = {}
    for split, others, name in (
        ("validation", test, "validation_in_test"),
        ("train", held_out, "train_in_validation_or_test"),
    ):
        rows = given.get(split, [])
        if rows:
            given[split] = _kept(rows, [row.texts not in others for row in rows], split)
            counts[name] = len(rows) - len(given[split])
    return counts


def _kept(rows: list[Row], keep: list[bool], split: str) -> list[Row]:
    if not any(keep):
        raise DataError(
            f"{split} must have examples with text that no later split holds as well, "
            f"none of its {len(rows)} is one"
        )
    return list(compress(rows, keep))


def _class_names(
    rows: dict[str, list[Row]],
    declared: list[str] | None,
    origin: dict[str, str],
    max_train: int | None,
) -> list[str]:
    names = label_names_of(rows["train"], declared, origin["train"])
    for split in SPLITS[1:]:
        check_known_labels(rows[split], rows["train"], f"{split} ({origin[split]})")
    if len({row.label for row in _capped(rows["train"], max_train)}) < 2:
        raise DataError(
            f"`max_train_examples` must leave at least 2 classes in train, {max_train} leaves 1"
        )
    return names


def _scored(
    rows: dict[str, list[Row]],
    declared: list[str] | None,
    origin: dict[str, str],
    limits: dict[str, int | None],
) -> dict[str, list[Labelled]]:
    if declared is not None:
        raise DataError(
            f"{origin['train']}: labels must be scores, but the data set declares the classes "
            f"{', '.join(declared)}"
        )
    labelled = {}
    for split in SPLITS:
        # of all rows: a cap must not hide a label that is wrong
        scores = scores_of(rows[split], f"{split} ({origin[split]})")
        kept = sample([row.texts for row in rows[split]], limits[split])
        labelled[split] = [Labelled(rows[split][i].texts, scores[i]) for i in kept]
        if len({row.label for row in labelled[split]}) < 2:
            raise DataError(
                f"{split} ({origin[split]}) must have at least 2 different scores, got only "
                f"{labelled[split][0].label:g} in {len(kept)} examples"
            )
    return labelled


def _capped(rows: list[Row], limit: int | None) -> list[Row]:
    return [rows[position] for position in sample([row.texts for row in rows], limit)]


def _numbered(rows: list[Row], names: list[str]) -> list[Labelled]:
    numbers = {name: number for number, name in enumerate(names)}
    return [Labelled(row.texts, numbers[row.label]) for row in rows]

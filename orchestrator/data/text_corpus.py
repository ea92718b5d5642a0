"""Running text for language modelling: what a source holds, divided into splits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from orchestrator.data import hub, python_docs, sources
from orchestrator.data.splits import (
    SPLITS,
    check_not_identical,
    complete,
    digest,
    long_line_overlap,
    missing_splits,
)
from orchestrator.data.text_files import documents_of, read_text
from orchestrator.spec_tasks import Data, Files, HubDataset, PythonDocs

logger = logging.getLogger(__name__)

MAX_QUIET_SHARE = 0.01
"""Share of long validation or test lines that may occur in train without a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCorpus:
    """Running text per split, for language modelling."""

    texts: dict[str, str]
    num_documents: dict[str, int]
    notes: dict[str, Any]
    """How it came about, as JSON: source, splits cut from train, what was dropped, overlap."""

    def content_digest(self) -> str:
        return digest(part for split in SPLITS for part in (split, self.texts[split]))


def read_text_corpus(data: Data) -> TextCorpus:
    """Read running text and complete its splits.

    Raises:
        DataError: When the source is not as it should be, or two splits are the same text.
    """
    source = sources.plain(data)
    given = _documents(source)
    documents, num_duplicates = complete(given, lambda text: (text,), sources.described(source))
    texts = {split: "".join(documents[split]) for split in SPLITS}
    check_not_identical(texts, sources.origins(source))
    return TextCorpus(
        texts=texts,
        num_documents={split: len(documents[split]) for split in SPLITS},
        notes={
            **sources.notes(data),
            "cut_from_train": missing_splits(given),
            "dropped": {"duplicates": num_duplicates},
            "long_line_overlap": {split: _overlap(texts, split) for split in SPLITS[1:]},
        },
    )


def _documents(data: PythonDocs | Files | HubDataset) -> dict[str, list[str]]:
    """The documents of the given splits."""
    if isinstance(data, PythonDocs):
        return {"train": python_docs.language_documents()}
    given = sources.given_splits(data)
    if isinstance(data, HubDataset):
        return {split: hub.read_documents(data, name) for split, name in given.items()}
    documents = {split: [read_text(path)] for split, path in given.items()}
    if missing_splits(given):  # given splits are kept as they are, one document each
        documents["train"] = documents_of(documents["train"][0])
    return documents


def _overlap(texts: dict[str, str], split: str) -> dict[str, float]:
    overlap = long_line_overlap(texts["train"], texts[split])
    if overlap["share"] > MAX_QUIET_SHARE:
        logger.warning(
            "%.1f %% of the long lines of %s occur in train as well (%d of %d)",
            100 * overlap["share"],
            split,
            overlap["num_in_train"],
            overlap["num_long_lines"],
        )
    return overlap

"""Preparation of labelled texts: tokenizer, ids with special tokens, labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data import tokenization
from orchestrator.data.encoding import EncodedRows, encode_rows
from orchestrator.data.prepared import FORMAT, TOKENIZER, array_name
from orchestrator.data.splits import SPLITS
from orchestrator.data.table_corpus import TableCorpus, read_table_corpus
from orchestrator.spec import content_hash
from orchestrator.spec_tasks import Classification, Regression

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class LabelledPreparation:
    """Examples that are read, split and capped, and can be tokenized into a folder.

    Args:
        task: What to prepare.
        pretrained: Folder or hub name of the model whose tokenizer applies.
    """

    def __init__(self, task: Classification | Regression, pretrained: str | None) -> None:
        self.task = task
        self.has_scores = isinstance(task, Regression)
        self.corpus: TableCorpus = read_table_corpus(
            task.data, task.max_train_examples, task.max_eval_examples, self.has_scores
        )
        self.pretrained = (
            tokenization.pretrained_tokenizer(pretrained, task.max_length, needs_padding=True)
            if pretrained is not None
            else None
        )

    def key(self) -> str:
        """Hash of all that decides the prepared data."""
        return content_hash(
            {
                "format": FORMAT,
                "kind": self.task.kind,
                "max_length": self.task.max_length,
                "vocab_size": None if self.pretrained else self.task.vocab_size,
                "tokenizer": tokenization.fingerprint(self.pretrained) if self.pretrained else None,
                "rows": self.corpus.content_digest(),
                "label_names": self.corpus.label_names,
                "notes": self.corpus.notes,
            }
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """Tokenize into a folder; returns what `PreparedData.info` will hold."""
        tokenizer = self.pretrained or self._trained()
        label_type = np.float64 if self.has_scores else np.int64
        splits = {}
        for split in SPLITS:
            rows = self.corpus.rows[split]
            encoded = encode_rows(tokenizer, [row.texts for row in rows], self.task.max_length)
            labels = np.array([row.label for row in rows], label_type)
            for part in ("ids", "offsets", "type_ids"):
                np.save(folder / array_name(split, part), getattr(encoded, part))
            np.save(folder / array_name(split, "labels"), labels)
            splits[split] = self._counts(encoded, labels)
        tokenization.save(tokenizer, folder / TOKENIZER, self.corpus.rows["train"][0].texts[0])
        return {
            "kind": self.task.kind,
            "max_length": self.task.max_length,
            "vocab_size": tokenization.size_of(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "uses_type_ids": "token_type_ids" in tokenizer.model_input_names,
            "label_names": self.corpus.label_names,
            "splits": splits,
            **self.corpus.notes,
        }

    def _trained(self) -> PreTrainedTokenizerFast:
        rows = self.corpus.rows["train"]
        texts = [text for row in rows for text in row.texts]
        pair = len(rows[0].texts) == 2
        return tokenization.classifier_tokenizer(texts, self.task.vocab_size, pair)

    def _counts(self, encoded: EncodedRows, labels: np.ndarray) -> dict[str, Any]:
        counts = {
            "num_examples": len(labels),
            "num_tokens": len(encoded.ids),
            "num_truncated": encoded.num_truncated,
            "truncated_share": encoded.num_truncated / len(labels),
        }
        if self.has_scores:
            spread = {"min": labels.min(), "mean": labels.mean(), "max": labels.max()}
            return counts | {"scores": {name: float(value) for name, value in spread.items()}}
        num_per_label = np.bincount(labels, minlength=len(self.corpus.label_names))
        return counts | {"num_per_label": num_per_label.tolist()}

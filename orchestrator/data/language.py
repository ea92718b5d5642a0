"""Preparation of running text: tokenizer by level, token arrays, counts for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data import tokenization
from orchestrator.data.encoding import EncodedText, encode_text
from orchestrator.data.pieces import num_words
from orchestrator.data.prepared import FORMAT, TOKENIZER, array_name
from orchestrator.data.splits import SPLITS
from orchestrator.data.text_corpus import TextCorpus, read_text_corpus
from orchestrator.errors import DataError
from orchestrator.spec import content_hash
from orchestrator.spec_tasks import LanguageModelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAMPLE = 2000
"""Characters that the saved tokenizer is tried on."""

WORD_CONVENTIONS = {
    "word": "white-space words and line breaks, each line break being the word <eos>",
    "token": "white-space words",
    "character": "white-space words",
}


class LanguagePreparation:
    """A corpus that is read and split, and can be tokenized into a folder.

    Args:
        task: What to prepare.
        pretrained: Folder or hub name of the model whose tokenizer applies.
    """

    def __init__(self, task: LanguageModelling, pretrained: str | None) -> None:
        if pretrained is not None and task.level != "token":
            raise DataError(
                "`level: token` must hold for a pretrained model, which brings its own tokenizer; "
                f"got {task.level}"
            )
        self.task = task
        self.corpus: TextCorpus = read_text_corpus(task.data)
        self.pretrained = (
            tokenization.pretrained_tokenizer(pretrained, task.context, needs_padding=False)
            if pretrained is not None
            else None
        )

    def key(self) -> str:
        """Hash of all that decides the prepared data."""
        trained = self.pretrained is None and self.task.level != "character"
        return content_hash(
            {
                "format": FORMAT,
                "kind": self.task.kind,
                "level": self.task.level,
                "vocab_size": self.task.vocab_size if trained else None,
                "tokenizer": tokenization.fingerprint(self.pretrained) if self.pretrained else None,
                "limits": [self._limit(split) for split in SPLITS],
                "texts": self.corpus.content_digest(),
                "num_documents": self.corpus.num_documents,
                "notes": self.corpus.notes,
            }
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """Tokenize into a folder; returns what `PreparedData.info` will hold."""
        tokenizer = self.pretrained or self._trained()
        splits = {}
        for split in SPLITS:
            text = self.corpus.texts[split]
            encoded = encode_text(tokenizer, self.task.level, text, self._limit(split))
            np.save(folder / array_name(split, "tokens"), encoded.ids)
            splits[split] = self._counts(split, encoded, tokenizer.unk_token_id)
        sample = self.corpus.texts["train"][:SAMPLE]
        tokenization.save(tokenizer, folder / TOKENIZER, sample)
        return {
            "kind": self.task.kind,
            "level": self.task.level,
            "vocab_size": tokenization.size_of(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "label_names": [],
            "word_convention": WORD_CONVENTIONS[self.task.level],
            "splits": splits,
            **self.corpus.notes,
        }

    def _limit(self, split: str) -> int | None:
        windows = self.task.max_train_examples if split == "train" else self.task.max_eval_examples
        return None if windows is None else windows * self.task.context

    def _trained(self) -> PreTrainedTokenizerFast:
        train = self.corpus.texts["train"]
        if self.task.level == "character":
            return tokenization.character_tokenizer(train)
        if self.task.level == "word":
            return tokenization.word_tokenizer(train, self.task.vocab_size)
        return tokenization.byte_pair_tokenizer(train, self.task.vocab_size)

    def _counts(self, split: str, encoded: EncodedText, unknown: int | None) -> dict[str, int]:
        covered = self.corpus.texts[split][: encoded.num_characters]
        num_tokens = len(encoded.ids)
        return {
            "num_documents": self.corpus.num_documents[split],
            "num_tokens": num_tokens,
            "num_unknown": 0 if unknown is None else int((encoded.ids == unknown).sum()),
            "num_characters": len(covered),
            "num_words": num_tokens if self.task.level == "word" else num_words(covered),
            "num_newlines": covered.count("\n"),
        }


def check_windows(info: Mapping[str, Any], context: int) -> None:
    """Every split must have at least one window.

    Args:
        info: Of prepared running text.
        context: Tokens per window.

    Raises:
        DataError: With the split, its tokens and the context.
    """
    for split in SPLITS:
        num_tokens = info["splits"][split]["num_tokens"]
        if num_tokens < context:
            raise DataError(
                "every split must have at least `context` tokens, one window: "
                f"{split} has {num_tokens}, context is {context}"
            )

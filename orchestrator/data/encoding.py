"""Text to ids: whole corpora at once, with an exact account of the text that the ids cover.

Characters and words take a shorter way than through the tokenizer (a lookup table, a
dictionary); the tests hold them to the tokenizer's own ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from orchestrator.data.pieces import NEWLINE_OR_WORD, pieces
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_CODE_POINTS = 0x110000

PIECES_PER_BATCH = 64

ROWS_PER_BATCH = 10_000

Level = Literal["character", "word", "token"]


class EncodedText(NamedTuple):
    """Running text as ids."""

    ids: np.ndarray
    """[num_tokens], the smallest of uint16 and int32 that holds the vocabulary."""
    num_characters: int
    """Length of the beginning of the text that the ids cover. Where a limit falls between the
    bytes of one character, that character counts."""


class EncodedRows(NamedTuple):
    """Examples as ids, one after the other."""

    ids: np.ndarray
    """[num_tokens]; example i is `ids[offsets[i]:offsets[i + 1]]`."""
    offsets: np.ndarray
    """[num_examples + 1], int64."""
    type_ids: np.ndarray
    """[num_tokens], uint8: 0 for the first text of an example, 1 for the second."""
    num_truncated: int


def encode_text(
    tokenizer: PreTrainedTokenizerFast, level: Level, text: str, limit: int | None
) -> EncodedText:
    """Encode running text without special tokens.

    Args:
        tokenizer: One that fits the level.
        level: `character` and `word` name the tokenizers of this package.
        text: The whole split.
        limit: Number of tokens to keep; None keeps all.
    """
    encode = {"character": _characters, "word": _words, "token": _tokens}[level]
    return encode(tokenizer, text, limit)


def encode_rows(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, ...]], max_length: int
) -> EncodedRows:
    """Encode texts or pairs of texts with their special tokens.

    Args:
        tokenizer: With or without a template for pairs.
        texts: One or two texts per example.
        max_length: Longer examples lose tokens at the end, of a pair the longer text first.

    Raises:
        DataError: When the special tokens alone fill `max_length`.
    """
    backend = tokenizer.backend_tokenizer
    num_special = backend.num_special_tokens_to_add(len(texts[0]) == 2)
    if max_length <= num_special:
        raise DataError(
            f"`max_length > {num_special}` must hold: the tokenizer adds {num_special} special "
            f"tokens to every example, got {max_length}"
        )
    backend.enable_truncation(max_length, strategy="longest_first")
    try:
        encodings = list(_encodings(backend, texts))
    finally:
        backend.no_truncation()
    lengths = [len(ids) for ids, _, _ in encodings]
    return EncodedRows(
        ids=np.concatenate([ids for ids, _, _ in encodings]).astype(_dtype(tokenizer)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        type_ids=np.concatenate([types for _, types, _ in encodings]),
        num_truncated=sum(truncated for _, _, truncated in encodings),
    )


def _encodings(
    backend: Any, texts: Sequence[tuple[str, ...]]
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    for start in range(0, len(texts), ROWS_PER_BATCH):
        batch = texts[start : start + ROWS_PER_BATCH]
        inputs = batch if len(batch[0]) == 2 else [text for (text,) in batch]
        for encoding in backend.encode_batch_fast(inputs):
            ids = np.array(encoding.ids, dtype=np.int32)
            yield ids, np.array(encoding.type_ids, dtype=np.uint8), bool(encoding.overflowing)


def _characters(tokenizer: PreTrainedTokenizerFast, text: str, limit: int | None) -> EncodedText:
    table = np.full(NUM_CODE_POINTS, tokenizer.unk_token_id, dtype=_dtype(tokenizer))
    for name, number in tokenizer.get_vocab().items():
        if len(name) == 1:
            table[ord(name)] = number
    covered = text[:limit]
    return EncodedText(table[np.frombuffer(covered.encode("utf-32-le"), "<u4")], len(covered))


def _words(tokenizer: PreTrainedTokenizerFast, text: str, limit: int | None) -> EncodedText:
    vocabulary = tokenizer.get_vocab()
    vocabulary["\n"] = tokenizer.eos_token_id
    unknown = tokenizer.unk_token_id
    words = islice(NEWLINE_OR_WORD.finditer(text), limit)
    ids = np.fromiter((vocabulary.get(word[0], unknown) for word in words), _dtype(tokenizer))
    if limit is None or len(ids) < limit:
        return EncodedText(ids, len(text))
    last = next(islice(NEWLINE_OR_WORD.finditer(text), limit - 1, None))
    return EncodedText(ids, last.end())


def _tokens(tokenizer: PreTrainedTokenizerFast, text: str, limit: int | None) -> EncodedText:
    backend = tokenizer.backend_tokenizer
    kept: list[np.ndarray] = []
    num_tokens = num_characters = 0
    for piece, ids in _encoded_pieces(backend, text):
        if limit is not None and num_tokens + len(ids) >= limit:
            ids = ids[: limit - num_tokens]
            offsets = backend.encode(piece, add_special_tokens=False).offsets
            kept.append(ids)
            num_characters += offsets[len(ids) - 1][1]
            break
        kept.append(ids)
        num_tokens += len(ids)
        num_characters += len(piece)
    return EncodedText(np.concatenate(kept).astype(_dtype(tokenizer)), num_characters)


def _encoded_pieces(backend: Any, text: str) -> Iterator[tuple[str, np.ndarray]]:
    remaining = pieces(text)
    while batch := list(islice(remaining, PIECES_PER_BATCH)):
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        for piece, encoding in zip(batch, encodings, strict=True):
            yield piece, np.array(encoding.ids, dtype=np.int32)


def _dtype(tokenizer: PreTrainedTokenizerFast) -> type[np.uint16] | type[np.int32]:
    from orchestrator.data.tokenization import size_of

    return np.uint16 if size_of(tokenizer) <= 1 << 16 else np.int32

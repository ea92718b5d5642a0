"""Tokenizers, trained here or pretrained: all of them fast, saved once, read back by AutoTokenizer.

Every training in this file gives the same tokenizer in every process. That rules out WordPiece:
the trainer of `tokenizers` numbers its `##` pieces in the order of a randomised hash map.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.pieces import NEWLINE_OR_WORD, pieces
from orchestrator.errors import DataError
from orchestrator.spec import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN, PAD, END_OF_LINE = "<unk>", "<pad>", "<eos>"

CLASSIFIER_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

NUM_BYTES = 256

WORD_START = "▁"


def character_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Every character of the text is a token, in the order of the code points."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = [UNKNOWN, PAD, *sorted(set(text))]
    tokenizer = Tokenizer(models.WordLevel(_numbered(names), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token=UNKNOWN, pad_token=PAD)


def word_tokenizer(text: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """The most frequent words between white space; a line break is the word `<eos>`.

    This is the convention of WikiText (Merity et al. 2016, arXiv 1609.07843), whose text already
    writes its rare words as `<unk>`. `<eos>` also serves as padding.

    Args:
        text: Training text.
        vocab_size: Upper bound, `<unk>` and `<eos>` included; ties go to the first in text order.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    counts = Counter(NEWLINE_OR_WORD.findall(text))
    for special in ("\n", UNKNOWN, END_OF_LINE):
        counts.pop(special, None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    names = [UNKNOWN, END_OF_LINE, *ranked[: vocab_size - 2]]
    tokenizer = Tokenizer(models.WordLevel(_numbered(names), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(tokenizer, unk_token=UNKNOWN, eos_token=END_OF_LINE, pad_token=END_OF_LINE)


def byte_pair_tokenizer(text: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair encoding as in GPT-2: no text is unknown to it.

    Raises:
        DataError: When the vocabulary cannot hold the 256 bytes and the padding token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < NUM_BYTES + 1:
        raise DataError(
            f"`vocab_size >= {NUM_BYTES + 1}` must hold for `level: token` (the bytes and "
            f"{PAD}), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(text), trainer)
    return _wrap(tokenizer, pad_token=PAD)


def classifier_tokenizer(
    texts: Sequence[str], vocab_size: int, pair: bool
) -> PreTrainedTokenizerFast:
    """A byte-pair encoding of lower-cased words, with the special tokens and templates of BERT.

    Args:
        texts: Training texts.
        vocab_size: Upper bound, special tokens included. Characters that do not fit, the rarest
            first, become `[UNK]`.
        pair: Whether models need token types to tell the two texts of an example apart.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from tokenizers.normalizers import BertNormalizer

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace(WORD_START)]
    )
    tokenizer.decoder = decoders.Metaspace(WORD_START)
    normal = (tokenizer.normalizer.normalize_str(text) for text in texts)
    alphabet = _most_frequent_characters(normal, vocab_size - len(CLASSIFIER_TOKENS))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=CLASSIFIER_TOKENS,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    types = ["token_type_ids"] if pair else []
    return _wrap(
        tokenizer,
        model_input_names=["input_ids", *types, "attention_mask"],
        **{f"{name[1:-1].lower()}_token": name for name in CLASSIFIER_TOKENS},
    )


def pretrained_tokenizer(name: str, length: int, needs_padding: bool) -> PreTrainedTokenizerFast:
    """The tokenizer of a pretrained model; without a padding token, `eos` takes that role.

    Args:
        name: Folder or hub name.
        length: Tokens that the model will read at once.
        needs_padding: Whether a tokenizer with neither a padding nor an end token is an error.

    Raises:
        DataError: When it cannot be loaded, is empty or not one of the `tokenizers` library, or
            allows fewer tokens than `length`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError and what the hub raises
        raise DataError(
            f"cannot load the tokenizer of {name!r} (a folder with tokenizer files, or a hub name "
            f"that can be reached or is cached): {error}"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(f"{name!r} must have a fast tokenizer, got {type(tokenizer).__name__}")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # transformers makes an empty one where the files are missing: every word is unknown to it
        raise DataError(f"the tokenizer of {name!r} must have tokens besides its special ones")
    if length > tokenizer.model_max_length:
        raise DataError(
            f"`max_length` or `context` must be at most {tokenizer.model_max_length} for {name!r}, "
            f"got {length}"
        )
    tokenizer.backend_tokenizer.no_truncation()  # some files ask for it, and for padding
    tokenizer.backend_tokenizer.no_padding()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None and needs_padding:
        raise DataError(f"the tokenizer of {name!r} must have a padding or an end token")
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of everything that decides the ids that a tokenizer gives."""
    backend = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return content_hash([backend, special])


def size_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows that an embedding needs: one more than the largest id."""
    return max(tokenizer.get_vocab().values()) + 1


def save(tokenizer: PreTrainedTokenizerFast, folder: Path, sample: str) -> None:
    """Write the tokenizer, and make sure that AutoTokenizer reads the same one back.

    Raises:
        DataError: When the saved tokenizer gives other ids for the sample.
    """
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if saved.backend_tokenizer.encode(sample).ids != tokenizer.backend_tokenizer.encode(sample).ids:
        raise DataError(
            f"{type(tokenizer).__name__} cannot be saved: read back, it gives other ids"
        )


def _wrap(tokenizer: Any, **options: Any) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        # a corpus may write "<pad>" or "[SEP]" itself: that is text, not a command
        split_special_tokens=True,
        **options,
    )


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _most_frequent_characters(texts: Iterable[str], limit: int) -> list[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(character for character in text if not character.isspace())
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return [WORD_START, *[c for c in ranked if c != WORD_START][: limit - 1]]

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data import encoding, tokenization
from orchestrator.data.encoding import encode_rows, encode_text
from orchestrator.data.pieces import pieces
from orchestrator.errors import DataError
from tests.orchestrator.data.tasks import opinions, prose

TEXT = prose(60)
LEVELS = {
    "character": tokenization.character_tokenizer(TEXT),
    "word": tokenization.word_tokenizer(TEXT, 50),
    "token": tokenization.byte_pair_tokenizer(TEXT, 320),
}
ROWS = [(text,) for text, _ in opinions(60)]
CLASSIFIER = tokenization.classifier_tokenizer([text for (text,) in ROWS], 120, pair=True)


@settings(deadline=None)
@given(st.sampled_from(sorted(LEVELS)), st.integers(1, 400))
def test_a_limit_keeps_the_first_tokens_and_knows_their_text(level, limit: int) -> None:
    tokenizer = LEVELS[level]
    whole = encode_text(tokenizer, level, TEXT, None)
    part = encode_text(tokenizer, level, TEXT, limit)
    assert part.ids.tolist() == whole.ids[:limit].tolist()
    covered = TEXT[: part.num_characters]
    again = encode_text(tokenizer, level, covered, None).ids
    if level == "token":  # the limit may fall between the two bytes of é
        assert tokenizer.decode(part.ids).rstrip("\ufffd") == covered.removesuffix(
            "é" if tokenizer.decode(part.ids).endswith("\ufffd") else ""
        )
    else:
        assert again.tolist() == part.ids.tolist()


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_without_a_limit_the_whole_text_is_covered(level) -> None:
    text = TEXT + "  \t "
    for limit in (None, 10**6):
        assert encode_text(LEVELS[level], level, text, limit).num_characters == len(text)


@settings(deadline=None)
@given(st.text("ab1é '.\n\t", max_size=300), st.integers(1, 40))
def test_pieces_have_the_tokens_of_the_whole_text(text: str, size: int) -> None:
    tokenizer = LEVELS["token"]
    backend = tokenizer.backend_tokenizer
    in_pieces = [number for part in pieces(text, size) for number in backend.encode(part).ids]
    if all(len(part) < 2 * size for part in pieces(text, size)):  # none cut by force
        assert in_pieces == tokenizer(text)["input_ids"]


def test_batches_do_not_show(monkeypatch) -> None:
    whole = encode_text(LEVELS["token"], "token", TEXT, None)
    monkeypatch.setattr(encoding, "pieces", lambda text: pieces(text, 50))
    monkeypatch.setattr(encoding, "PIECES_PER_BATCH", 3)
    for limit in (None, 7, 200, 10**6):
        part = encode_text(LEVELS["token"], "token", TEXT, limit)
        assert part.ids.tolist() == whole.ids[:limit].tolist()
        text = LEVELS["token"].decode(part.ids).rstrip("\ufffd")
        assert len(text) <= part.num_characters <= len(text) + 1


def test_ids_take_the_smallest_type_that_holds_them() -> None:
    assert encode_text(LEVELS["word"], "word", TEXT, 5).ids.dtype == np.uint16
    many = "".join(chr(n) for n in range(0x4E00, 0x4E00 + 70_000) if not 0xD800 <= n < 0xE000)
    large = tokenization.character_tokenizer(many)
    ids = encode_text(large, "character", many[-1] + many[0], None).ids
    assert ids.dtype == np.int32
    assert ids.tolist() == [len(many) + 1, 2]


def test_rows_equal_the_tokenizer(monkeypatch) -> None:
    monkeypatch.setattr(encoding, "ROWS_PER_BATCH", 7)
    encoded = encode_rows(CLASSIFIER, ROWS, 64)
    expected = [CLASSIFIER(text)["input_ids"] for (text,) in ROWS]
    assert np.split(encoded.ids, encoded.offsets[1:-1])[31].tolist() == expected[31]
    assert encoded.ids.tolist() == [number for ids in expected for number in ids]
    assert encoded.type_ids.sum() == 0
    assert encoded.num_truncated == 0


def test_pairs_equal_the_tokenizer_with_truncation() -> None:
    pairs = [(one[0] * 4, other[0]) for one, other in zip(ROWS, reversed(ROWS), strict=True)]
    pairs.append(("a", "b"))
    encoded = encode_rows(CLASSIFIER, pairs, 20)
    expected = [CLASSIFIER(*pair, truncation=True, max_length=20) for pair in pairs]
    assert encoded.ids.tolist() == [n for one in expected for n in one["input_ids"]]
    assert encoded.type_ids.tolist() == [n for one in expected for n in one["token_type_ids"]]
    assert np.diff(encoded.offsets).max() == 20
    assert encoded.num_truncated == len(pairs) - 1


def test_truncation_is_not_left_in_the_tokenizer() -> None:
    encode_rows(CLASSIFIER, ROWS, 5)
    assert CLASSIFIER.backend_tokenizer.truncation is None


def test_special_tokens_must_leave_room() -> None:
    with pytest.raises(DataError, match=r"`max_length > 3` must hold: .* got 3"):
        encode_rows(CLASSIFIER, [("a", "b")], 3)
    assert len(encode_rows(CLASSIFIER, [("a", "b")], 4).ids) == 4

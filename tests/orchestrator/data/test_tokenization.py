from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from orchestrator.data import tokenization
from orchestrator.data.encoding import encode_rows, encode_text
from orchestrator.errors import DataError
from tests.orchestrator.data.tasks import opinions, prose

# Unicode text with what tokenizers are tempted to treat as special
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\ta<>é▁")))
TRICKY = "the <pad> and <unk>\r\n\n  [SEP] é\u2028\x1c😀<eos> ▁x\t"
SPECIAL = st.lists(st.one_of(TEXT, st.sampled_from(["<unk>", "<pad>", "<eos>", "[SEP]", " "])))

BYTE_PAIRS = tokenization.byte_pair_tokenizer(prose(100) + TRICKY, 300)


def saved(tokenizer, folder: Path):
    tokenization.save(tokenizer, folder, TRICKY)
    return AutoTokenizer.from_pretrained(folder)


@settings(deadline=None)
@given(TEXT, SPECIAL)
def test_characters_round_trip_and_equal_the_lookup_table(train: str, parts: list[str]) -> None:
    tokenizer = tokenization.character_tokenizer(train + TRICKY)
    text = "".join(parts)
    ids = encode_text(tokenizer, "character", text, None).ids.tolist()
    assert ids == tokenizer(text)["input_ids"]
    known = "".join(c if c in train + TRICKY else "<unk>" for c in text)
    assert tokenizer.decode(ids) == known
    assert len(ids) == len(text)


@settings(deadline=None)
@given(TEXT, SPECIAL)
def test_words_equal_the_dictionary(train: str, parts: list[str]) -> None:
    tokenizer = tokenization.word_tokenizer(train + TRICKY, 12)
    text = "".join(parts)
    ids = encode_text(tokenizer, "word", text, None).ids.tolist()
    assert ids == tokenizer(text)["input_ids"]


@settings(deadline=None, max_examples=50)
@given(SPECIAL)
def test_byte_pairs_round_trip_on_any_text(parts: list[str]) -> None:
    tokenizer = BYTE_PAIRS
    text = "".join(parts)
    if text:
        ids = encode_text(tokenizer, "token", text, None).ids.tolist()
        assert ids == tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.pad_token_id not in ids


@pytest.mark.parametrize("level", ["character", "word", "token"])
def test_saved_tokenizers_are_read_back_the_same(tmp_path: Path, level: str) -> None:
    text = prose(50) + TRICKY
    tokenizer = {
        "character": lambda: tokenization.character_tokenizer(text),
        "word": lambda: tokenization.word_tokenizer(text, 100),
        "token": lambda: tokenization.byte_pair_tokenizer(text, 300),
    }[level]()
    loaded = saved(tokenizer, tmp_path)
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert loaded.pad_token_id == tokenizer.pad_token_id is not None
    expected = " ".join(loaded.convert_ids_to_tokens(ids)) if level == "word" else text
    assert loaded.decode(ids) == expected


def test_character_vocabulary_is_what_the_training_text_has() -> None:
    tokenizer = tokenization.character_tokenizer("cab\n")
    assert tokenizer.convert_ids_to_tokens(range(6)) == ["<unk>", "<pad>", "\n", "a", "b", "c"]
    assert tokenization.size_of(tokenizer) == 6
    assert tokenizer("dad")["input_ids"] == [0, 3, 0]


def test_word_vocabulary_keeps_the_most_frequent() -> None:
    tokenizer = tokenization.word_tokenizer("b b b <unk> <unk> c c a a z\n\n", 5)
    names = tokenizer.convert_ids_to_tokens(range(tokenization.size_of(tokenizer)))
    assert names == ["<unk>", "<eos>", "b", "a", "c"]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 1
    assert tokenizer("b z\n<unk> <eos>")["input_ids"] == [2, 0, 1, 0, 1]


def test_byte_pairs_need_room_for_the_bytes() -> None:
    with pytest.raises(DataError, match=r"`vocab_size >= 257` must hold .* got 256"):
        tokenization.byte_pair_tokenizer("text", 256)
    assert tokenization.size_of(tokenization.byte_pair_tokenizer("text " * 50, 257)) == 257


def test_byte_pairs_learn_from_the_text() -> None:
    text = prose(20)
    assert len(BYTE_PAIRS(text)["input_ids"]) < 0.9 * len(text.encode())


TEXTS = [text for text, _ in opinions(200)]


def test_classifier_tokens_follow_the_templates_of_bert() -> None:
    tokenizer = tokenization.classifier_tokenizer(TEXTS, 200, pair=True)
    encoded = tokenizer("A GREAT film", "a dull film")
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert [tokens[0], tokens[-1], tokens.count("[SEP]")] == ["[CLS]", "[SEP]", 2]
    second = tokens.index("[SEP]") + 1
    assert encoded["token_type_ids"] == [0] * second + [1] * (len(tokens) - second)
    assert tokenizer("a great film")["input_ids"] == encoded["input_ids"][:second]
    assert tokenizer.decode(encoded["input_ids"][1 : second - 1]) == "a great film"
    assert tokenizer.convert_ids_to_tokens(range(5)) == tokenization.CLASSIFIER_TOKENS
    assert tokenizer.pad_token_id == 0


def test_classifier_vocabulary_stays_within_its_bound() -> None:
    many = [chr(0x4E00 + n) * (n % 7 + 1) for n in range(300)]
    tokenizer = tokenization.classifier_tokenizer(many, 64, pair=False)
    assert tokenization.size_of(tokenizer) <= 64
    ids = tokenizer(many[6], add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer(many[7])["input_ids"]


def test_text_that_looks_like_a_special_token_is_text() -> None:
    tokenizer = tokenization.classifier_tokenizer([*TEXTS, "[SEP] in text"], 200, pair=False)
    assert tokenizer("[SEP]")["input_ids"].count(tokenizer.sep_token_id) == 1


def test_token_types_are_asked_for_only_with_pairs() -> None:
    names = [
        tokenization.classifier_tokenizer(TEXTS, 100, pair).model_input_names
        for pair in (True, False)
    ]
    assert ["token_type_ids" in part for part in names] == [True, False]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A folder as a model hub has it, with truncation and padding left in the file."""
    folder = tmp_path_factory.mktemp("pretrained")
    tokenizer = tokenization.classifier_tokenizer(TEXTS, 150, pair=True)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


def test_pretrained_tokenizers_lose_their_truncation_and_padding(pretrained: Path) -> None:
    assert json.loads((pretrained / "tokenizer.json").read_text())["truncation"] is not None
    tokenizer = tokenization.pretrained_tokenizer(str(pretrained), 64, needs_padding=True)
    rows = [("a",), ("a great film " * 5,)]
    encoded = encode_rows(tokenizer, rows, 64)
    assert encoded.offsets[1] < 8 < encoded.offsets[2] - encoded.offsets[1]
    assert encoded.num_truncated == 0


def test_pretrained_without_padding_pads_with_its_end_token(tmp_path: Path) -> None:
    tokenization.classifier_tokenizer(TEXTS, 150, pair=True).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="must have a padding or an end token"):
        tokenization.pretrained_tokenizer(str(tmp_path), 8, needs_padding=True)
    tokenizer = tokenization.pretrained_tokenizer(str(tmp_path), 8, needs_padding=False)
    assert tokenizer.pad_token is None
    path.write_text(json.dumps(config | {"eos_token": "[SEP]"}))
    tokenizer = tokenization.pretrained_tokenizer(str(tmp_path), 8, needs_padding=True)
    assert tokenizer.pad_token == "[SEP]"


def test_pretrained_length_is_checked(pretrained: Path) -> None:
    with pytest.raises(DataError, match=r"must be at most 64 for .* got 65"):
        tokenization.pretrained_tokenizer(str(pretrained), 65, needs_padding=True)


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot load the tokenizer of") as caught:
        tokenization.pretrained_tokenizer(str(tmp_path), 8, needs_padding=True)
    assert caught.value.__cause__ is not None


def test_fingerprint_sees_vocabulary_and_special_tokens() -> None:
    one = tokenization.character_tokenizer("abc")
    assert tokenization.fingerprint(one) == tokenization.fingerprint(
        tokenization.character_tokenizer("cab")
    )
    prints = {tokenization.fingerprint(one)}
    prints.add(tokenization.fingerprint(tokenization.character_tokenizer("abcd")))
    one.pad_token = "<unk>"
    prints.add(tokenization.fingerprint(one))
    assert len(prints) == 3


def test_tokenizer_that_cannot_be_saved_is_refused(tmp_path: Path, monkeypatch) -> None:
    other = tokenization.character_tokenizer("xyz")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, **_: other)
    with pytest.raises(DataError, match="read back, it gives other ids"):
        tokenization.save(tokenization.character_tokenizer("abc"), tmp_path, "abc")

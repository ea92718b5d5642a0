from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from orchestrator.data import PreparedData, describe, prepare_data, tokenization
from orchestrator.data import language as language_module
from orchestrator.data import prepare as prepare_module
from orchestrator.errors import DataError, StorageError
from orchestrator.spec_tasks import PythonDocs
from tests.orchestrator.data.tasks import (
    classification_task,
    language_task,
    opinions,
    prose,
    regression_task,
    table,
    table_files,
    text_files,
)

TEXTS = {"train": prose(60), "validation": prose(12, seed=1), "test": prose(11, seed=2)}
TABLES = {
    "train": table(*opinions(80)),
    "validation": table(*opinions(20, 1)),
    "test": table(*opinions(15, 2)),
}


@pytest.fixture
def files(tmp_path: Path):
    return text_files(tmp_path / "text", **TEXTS)


@pytest.fixture
def tables(tmp_path: Path):
    return table_files(tmp_path / "tables", **TABLES)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


@pytest.mark.parametrize("level", ["character", "word", "token"])
def test_language_modelling_from_text_to_tokens(files, cache: Path, level: str) -> None:
    task = language_task(files, level=level, vocab_size=300)
    prepared = prepare_data(task, cache, None)
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    assert prepared.folder == cache / prepared.content_hash
    assert len(prepared.content_hash) == 16
    assert prepared.vocab_size == len(tokenizer)
    assert prepared.pad_token_id == tokenizer.pad_token_id
    for split, text in TEXTS.items():
        tokens = prepared.tokens(split)
        assert tokens.tolist() == tokenizer(text)["input_ids"]
        counts = prepared.info["splits"][split]
        assert counts["num_tokens"] == len(tokens)
        assert counts["num_characters"] == len(text)
        assert counts["num_newlines"] == text.count("\n")
        words = len(text.split())
        assert counts["num_words"] == (words + text.count("\n") if level == "word" else words)
        if level == "word":
            assert counts["num_words"] == counts["num_tokens"]


def test_unknown_tokens_are_counted(cache: Path, tmp_path: Path) -> None:
    files = text_files(tmp_path, train="aabb", validation="abcd", test="bbbb")
    info = prepare_data(language_task(files), cache, None).info
    assert [info["splits"][s]["num_unknown"] for s in ("train", "validation", "test")] == [0, 2, 0]


def test_classification_from_table_to_examples(tables, cache: Path) -> None:
    task = classification_task(tables, max_length=8, vocab_size=120)
    prepared = prepare_data(task, cache, None)
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    assert prepared.label_names == ["bad", "good"]
    for split, seed, number in (("train", 0, 80), ("validation", 1, 20), ("test", 2, 15)):
        examples = prepared.examples(split)
        assert len(examples) == prepared.info["splits"][split]["num_examples"] == number
        for (text, label), (ids, type_ids, found) in zip(
            opinions(number, seed), examples, strict=True
        ):
            assert ids.tolist() == tokenizer(text, truncation=True, max_length=8)["input_ids"]
            assert type_ids.tolist() == [0] * len(ids)
            assert prepared.label_names[found] == label
    counts = prepared.info["splits"]["train"]
    full = [len(tokenizer(text)["input_ids"]) for text, _ in opinions(80)]
    assert counts["truncated_share"] == sum(length > 8 for length in full) / 80 > 0
    assert sum(counts["num_per_label"]) == 80
    assert prepared.info["uses_type_ids"] is False


def test_scores_from_table_to_examples(tmp_path: Path, cache: Path) -> None:
    rows = [(f"text {number}", f"{number % 7 / 4:.3f}") for number in range(60)]
    files = table_files(tmp_path, train=table(*rows))
    prepared = prepare_data(regression_task(files, vocab_size=100), cache, None)
    assert prepared.label_names == []
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    found = {
        tuple(ids.tolist()): score
        for split in ("train", "validation", "test")
        for ids, _, score in prepared.examples(split)
    }
    assert found == {tuple(tokenizer(text)["input_ids"]): float(score) for text, score in rows}
    counts = prepared.info["splits"]["train"]
    assert counts["scores"] == {
        "min": 0.0,
        "mean": pytest.approx(prepared.examples("train").labels.mean()),
        "max": 1.5,
    }
    assert "num_per_label" not in counts
    assert "files, scores from 0 to 1.5, vocabulary" in describe(prepared)
    # the same texts and labels as classes are other data
    whole = [(text, str(number % 2)) for number, (text, _) in enumerate(rows)]
    files = table_files(tmp_path, train=table(*whole))
    hashes = {
        prepare_data(make(files, vocab_size=100), cache, None).content_hash
        for make in (regression_task, classification_task)
    }
    assert len(hashes) == 2


def test_pairs_carry_type_ids(tmp_path: Path, cache: Path) -> None:
    rows = [(text, text[::-1], label) for text, label in opinions(60)]
    data = table_files(
        tmp_path,
        ["one", "two"],
        train=table(*rows, header="one\ttwo\tlabel"),
    )
    prepared = prepare_data(classification_task(data, vocab_size=100), cache, None)
    assert prepared.info["uses_type_ids"] is True
    assert prepared.info["cut_from_train"] == ["validation", "test"]
    ids, type_ids, _ = prepared.examples("train")[0]
    assert set(type_ids.tolist()) == {0, 1}
    assert len(ids) == len(type_ids)


def test_pretrained_tokenizer_is_used_and_copied(files, tables, cache: Path, tmp_path: Path):
    pretrained = tmp_path / "model"
    tokenization.byte_pair_tokenizer("other text " * 30, 270).save_pretrained(pretrained)
    source = AutoTokenizer.from_pretrained(pretrained)
    lm = prepare_data(language_task(files, level="token"), cache, str(pretrained))
    assert lm.tokens("test").tolist() == source(TEXTS["test"])["input_ids"]
    assert lm.vocab_size == len(source)
    cls = prepare_data(classification_task(tables), cache, str(pretrained))
    text = opinions(15, 2)[3][0]
    assert cls.examples("test")[3][0].tolist() == source(text)["input_ids"][:16]
    copied = AutoTokenizer.from_pretrained(cls.tokenizer_folder)
    assert copied(text)["input_ids"] == source(text)["input_ids"]


@pytest.mark.parametrize("level", ["character", "word"])
def test_pretrained_models_bring_their_own_tokens(files, cache: Path, level: str) -> None:
    with pytest.raises(DataError, match=f"`level: token` must hold .* got {level}"):
        prepare_data(language_task(files, level=level), cache, "somewhere")


@pytest.mark.parametrize("level", ["character", "word", "token"])
def test_caps_keep_the_first_windows_and_count_their_text(files, cache, level: str) -> None:
    whole = prepare_data(language_task(files, level=level, vocab_size=300), cache, None)
    capped = prepare_data(
        language_task(
            files, level=level, vocab_size=300, max_train_examples=9, max_eval_examples=5
        ),
        cache,
        None,
    )
    assert capped.vocab_size == whole.vocab_size
    for split, windows in (("train", 9), ("validation", 5), ("test", 5)):
        tokens = capped.tokens(split)
        assert tokens.tolist() == whole.tokens(split)[: windows * 4].tolist()
        counts = capped.info["splits"][split]
        assert counts["num_tokens"] == windows * 4
        covered = TEXTS[split][: counts["num_characters"]]
        assert counts["num_newlines"] == covered.count("\n")
        if level == "word":
            assert counts["num_words"] == windows * 4
        else:
            assert counts["num_words"] == len(covered.split())


def test_classification_caps(tables, cache: Path) -> None:
    task = classification_task(tables, max_train_examples=30, max_eval_examples=6)
    info = prepare_data(task, cache, None).info
    sizes = [info["splits"][split]["num_examples"] for split in ("train", "validation", "test")]
    assert sizes == [30, 6, 6]


def test_every_split_needs_a_window(files, cache: Path) -> None:
    characters = len(TEXTS["test"])
    prepare_data(language_task(files, context=characters), cache, None)
    for _ in range(2):  # tokenized or found in the cache
        with pytest.raises(
            DataError, match=f"one window: test has {characters}, context is {characters + 1}"
        ):
            prepare_data(language_task(files, context=characters + 1), cache, None)


def counted(monkeypatch, module, name: str) -> list[int]:
    calls: list[int] = []
    original = getattr(module, name)

    def count(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(module, name, count)
    return calls


def test_second_call_does_not_tokenize(files, cache: Path, monkeypatch) -> None:
    calls = counted(monkeypatch, language_module, "encode_text")
    first = prepare_data(language_task(files), cache, None)
    assert len(calls) == 3
    second = prepare_data(language_task(files, name="other"), cache, None)
    assert len(calls) == 3
    assert first == second


def test_hash_changes_with_the_data_and_only_then(tmp_path: Path, cache: Path) -> None:
    def key(folder: str, **fields):
        texts = TEXTS | fields.pop("texts", {})
        files = text_files(tmp_path / folder, **texts)
        return prepare_data(language_task(files, **fields), cache, None).content_hash

    base = key("a")
    assert key("elsewhere") == base
    assert key("a", context=8) == base
    assert key("a", vocab_size=99) == base  # characters have no bound
    assert key("a", name="b", evaluate_every=7) == base
    words = key("a", level="word", vocab_size=20)
    others = [
        key("b", texts={"train": TEXTS["train"] + "x"}),
        key("c", texts={"test": TEXTS["test"] + "x"}),
        key("a", max_train_examples=5),
        key("a", max_eval_examples=5),
        key("a", max_eval_examples=5, context=8),
        words,
        key("a", level="word", vocab_size=21),
        key("a", level="token", vocab_size=300),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_classification_hash(tmp_path: Path, tables, cache: Path) -> None:
    def key(data=tables, pretrained: str | None = None, **fields):
        return prepare_data(classification_task(data, **fields), cache, pretrained).content_hash

    base = key()
    assert key(metric="f1") == base
    assert key(max_train_examples=10_000) == base
    relabelled = [(text, label.upper()) for text, label in opinions(80)]
    held_out = {
        split: TABLES[split].upper().replace("SENTENCE\tLABEL", "sentence\tlabel")
        for split in ("validation", "test")
    }
    other = table_files(tmp_path / "other", train=table(*relabelled), **held_out)
    model = tmp_path / "model"
    tokenization.classifier_tokenizer(["some text"], 64, pair=False).save_pretrained(model)
    others = [key(other), key(max_length=9), key(vocab_size=70), key(pretrained=str(model))]
    assert len({base, *others}) == 5


def test_failed_preparation_leaves_nothing(files, cache: Path, monkeypatch) -> None:
    def fail(*arguments):
        raise RuntimeError("power cut")

    monkeypatch.setattr(tokenization, "save", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare_data(language_task(files), cache, None)
    assert list(cache.iterdir()) == []


def test_loser_of_a_race_takes_the_winner_s_folder(files, cache: Path, monkeypatch) -> None:
    original = prepare_module.write_inventory

    def write_and_lose(draft: Path, key: str, info: dict) -> None:
        original(draft, key, info)
        monkeypatch.setattr(prepare_module, "write_inventory", original)
        prepare_data(language_task(files), cache, None)  # the other process

    monkeypatch.setattr(prepare_module, "write_inventory", write_and_lose)
    prepared = prepare_data(language_task(files), cache, None)
    assert [path.name for path in cache.iterdir()] == [prepared.content_hash]
    assert PreparedData.open(prepared.folder, verify=True) == prepared


def test_threads_may_share_a_cache(files, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare_data(language_task(files), cache, None), range(4)))
    assert all(prepared == found[0] for prepared in found)
    assert len(list(cache.iterdir())) == 1


def test_damaged_cache_is_an_error_not_data(files, cache: Path) -> None:
    prepared = prepare_data(language_task(files), cache, None)
    np.save(prepared.folder / "test.tokens.npy", np.zeros(3, dtype=np.uint16))
    with pytest.raises(DataError, match=r"test.tokens.npy is damaged"):
        prepare_data(language_task(files), cache, None)


def test_cache_that_cannot_be_written(files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write prepared data to"):
        prepare_data(language_task(files), tmp_path / "file", None)


def test_python_docs_end_to_end(cache: Path) -> None:
    task = language_task(PythonDocs(source="python-docs"), context=64, max_train_examples=100)
    prepared = prepare_data(task, cache, None)
    assert len(prepared.tokens("train")) == 6400
    line = describe(prepared)
    assert line.startswith("python-docs, character level")
    assert "\n" not in line


SCRIPT = """
import sys
from pathlib import Path
from orchestrator.data import prepare_data
from tests.orchestrator.data.tasks import *
from orchestrator.spec_tasks import Files
text, tables, cache = sys.argv[1:]
paths = lambda folder, suffix: {s: f"{folder}/{s}{suffix}" for s in ("train", "validation", "test")}
files = Files(source="files", **paths(text, ".txt"))
for level in ("character", "word", "token"):
    prepare_data(language_task(files, level=level, vocab_size=300), Path(cache), None)
prepare_data(
    classification_task(Files(source="files", **paths(tables, ".tsv")), vocab_size=150),
    Path(cache), None,
)
"""


def test_two_processes_write_the_same_bytes(files, tables, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    folders = [str(Path(data.train).parent) for data in (files, tables)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *folders, str(tmp_path / f"cache{seed}")],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    one, other = (digests(tmp_path / f"cache{seed}") for seed in ("1", "2"))
    assert len(one) == 4 * 3 + 3 * 3 + 4 * 3  # 4 folders: data.json, tokenizer; arrays
    assert one == other


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }

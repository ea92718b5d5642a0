"""Windows, labels and metrics of language models, against loops that take a token at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.models import build_model
from orchestrator.tasks import language_modelling, make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import GPT2, LENGTH, Family, make_lm, ready, with_config

WILD = with_config(GPT2, initializer_range=0.3)
"""Weights large enough that an untrained model prefers some tokens to others."""


def test_labels_are_the_inputs_shifted(lm: Family):
    task = make_task(lm.task, lm.data, seed=0)
    starts = task.global_batch(0)
    batch = task.collate(starts)
    tokens = lm.data.tokens("train")
    assert batch["input_ids"].shape == batch["labels"].shape == (task.batch_size, LENGTH)
    for row, start in enumerate(starts):
        assert batch["input_ids"][row].tolist() == tokens[start : start + LENGTH].tolist()
        assert batch["labels"][row].tolist() == tokens[start + 1 : start + LENGTH + 1].tolist()


def test_training_windows_start_anywhere_and_nowhere_else(tmp_path: Path):
    task = ready(make_lm(tmp_path, max_train_examples=2), tmp_path / "cache")
    assert len(task.data.tokens("train")) == 2 * LENGTH
    seen = {int(start) for step in range(60) for start in task.global_batch(step)}
    assert seen == set(range(LENGTH))  # the last window ends with the last token


def test_metrics_are_those_of_a_loop_over_tokens(tmp_path: Path):
    spec = make_lm(tmp_path, model=WILD)
    task = ready(spec, tmp_path / "cache")
    model = build_model(spec, task.data, seed=2).eval()
    tokens = task.data.tokens("test").astype(int).tolist()
    assert (len(tokens) - 1) % LENGTH, "the last window must be ragged"
    nats, count = 0.0, 0
    for start in range(0, len(tokens) - 1, LENGTH):
        window = tokens[start : start + LENGTH + 1]
        for position in range(1, len(window)):
            logits = model(input_ids=torch.tensor([window[:position]])).logits[0, -1]
            nats -= logits.detach().double().log_softmax(0)[window[position]].item()
            count += 1
    assert count == len(tokens) - 1

    metrics = evaluate(model, task, LocalWorkers(), "test")
    names = {number: name for name, number in vocabulary(task).items()}
    text = "".join(names[token] for token in tokens)
    words = len(text.split()) * count / len(tokens)
    assert metrics == pytest.approx(
        {
            "loss_nats": nats / count,
            "perplexity_token": math.exp(nats / count),
            "perplexity_word": math.exp(nats / words),
            "bits_per_character": nats / count / math.log(2),
        },
        rel=1e-5,
    )


def vocabulary(task: Any) -> dict[str, int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(task.data.tokenizer_folder).get_vocab()


@pytest.mark.parametrize("world", [2, 3, 20])
def test_any_number_of_workers_gives_the_same_metrics(
    lm: Family, world: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(language_modelling, "EVALUATION_BATCH_TOKENS", 3 * LENGTH)
    task = make_task(lm.task, lm.data, seed=0)
    model = build_model(lm.task, lm.data, seed=2).eval()
    alone = task.evaluate_shard(model, "test", 0, 1)
    shards = [task.evaluate_shard(model, "test", rank, world) for rank in range(world)]
    assert sum(count for _, count in shards) == alone[1] == len(lm.data.tokens("test")) - 1
    assert max(count for _, count in shards) < alone[1]
    assert task.combine(shards, "test") == pytest.approx(task.combine([alone], "test"), rel=1e-6)


def test_a_split_shorter_than_the_context_is_one_ragged_window(tmp_path: Path):
    task = ready(make_lm(tmp_path, max_eval_examples=1), tmp_path / "cache")
    model = build_model(make_lm(tmp_path), task.data, seed=2).eval()
    assert len(task.data.tokens("test")) == LENGTH
    assert task.evaluate_shard(model, "test", 0, 1)[1] == LENGTH - 1


def test_per_word_and_per_character_share_the_text_that_is_predicted(lm: Family):
    """Nats of all tokens but the first, over words and characters without the first's share."""
    task = make_task(lm.task, lm.data, seed=0)
    info = lm.data.info["splits"]["test"]
    count = info["num_tokens"] - 1
    metrics = task.combine([[100.0, count]], "test")
    part = count / info["num_tokens"]
    assert metrics["perplexity_word"] == pytest.approx(math.exp(100 / (info["num_words"] * part)))
    assert metrics["bits_per_character"] == pytest.approx(
        100 / (info["num_characters"] * part) / math.log(2)
    )


def test_at_word_level_tokens_are_words(tmp_path: Path):
    spec = make_lm(tmp_path, level="word", model=WILD)
    task = ready(spec, tmp_path / "cache")
    model = build_model(spec, task.data, seed=2)
    assert task.metric.name == "perplexity_token"
    metrics = evaluate(model, task, LocalWorkers(), "validation")
    assert metrics["perplexity_word"] == pytest.approx(metrics["perplexity_token"])


def test_what_no_number_can_hold_is_left_out(lm: Family):
    """Perplexity per word overflows on text almost without white space."""
    task = make_task(lm.task, lm.data, seed=0)
    info = lm.data.info["splits"]["test"]
    metrics = task.combine([[1000.0 * info["num_words"], info["num_tokens"] - 1]], "test")
    assert "perplexity_word" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_text_without_words_has_no_perplexity_per_word(tmp_path: Path):
    from tests.orchestrator.data.tasks import language_task, prose, text_files

    files = text_files(tmp_path, train=prose(30), validation="ab " * 9, test="\n" * 40 + "ab")
    spec = language_task(files, context=8, model=GPT2, max_eval_examples=2)
    task = ready(spec, tmp_path / "cache")
    metrics = evaluate(build_model(spec, task.data, 0), task, LocalWorkers(), "test")
    assert set(metrics) == {"loss_nats", "perplexity_token", "bits_per_character"}


def test_evaluation_leaves_the_model_as_it_was(lm: Family):
    model = build_model(lm.task, lm.data, seed=2).train()
    task = make_task(lm.task, lm.data, seed=0)
    first = evaluate(model, task, LocalWorkers(), "test")
    assert model.training
    assert first == evaluate(model.eval(), task, LocalWorkers(), "test")
    assert not model.training

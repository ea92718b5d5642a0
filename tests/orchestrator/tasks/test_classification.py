"""Padding, epochs, buckets and metrics of classification."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.models import build_model
from orchestrator.tasks import labelled, make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
from tests.orchestrator.data.tasks import classification_task, table, table_files
from tests.orchestrator.small import BERT, GPT2, make_classes, ready, reviews, with_config

WILD = with_config(BERT, initializer_range=0.5)
"""Weights large enough that an untrained model does not answer alike to everything."""


def predict(model: Any, task: Any, split: str) -> tuple[list[int], list[int]]:
    """Labels and predictions, one example at a time and without padding."""
    labels, predictions = [], []
    for ids, _, label in task.data.examples(split):
        logits = model(input_ids=torch.tensor([ids.astype(int).tolist()])).logits[0]
        labels.append(label)
        predictions.append(int(logits.argmax()))
    return labels, predictions


@pytest.mark.parametrize("model", [WILD, with_config(GPT2, initializer_range=0.5)])
def test_padding_changes_no_answer(tmp_path: Path, model: dict[str, Any]):
    spec = make_classes(tmp_path, model=model)
    task = ready(spec, tmp_path / "cache")
    network = build_model(spec, task.data, seed=2).eval()
    indices = np.arange(12)
    batch = task.collate(indices)
    lengths = batch["attention_mask"].sum(1)
    assert lengths.min() < lengths.max() == batch["input_ids"].shape[1]
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        together = network(**inputs).logits
        for row, (ids, _, label) in enumerate(
            map(task.data.examples("train").__getitem__, indices)
        ):
            alone = network(input_ids=torch.tensor([ids.astype(int).tolist()])).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
            assert int(batch["labels"][row]) == label
    assert float(together.std(0).max()) > 0.05, "a model that ignores its input proves nothing"


def test_an_epoch_visits_every_example_once(tmp_path: Path):
    task = ready(make_classes(tmp_path, rows=48), tmp_path / "cache")
    epochs = [
        [int(i) for step in range(6) for i in task.global_batch(6 * epoch + step)]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_what_fills_no_batch_differs_between_epochs(tmp_path: Path):
    task = ready(make_classes(tmp_path, rows=45), tmp_path / "cache")
    left = set()
    for epoch in range(4):
        seen = Counter(int(i) for step in range(5) for i in task.global_batch(5 * epoch + step))
        assert len(seen) == 40
        assert set(seen.values()) == {1}
        left.add(frozenset(set(range(45)) - set(seen)))
    assert len(left) > 1


def test_fewer_examples_than_a_batch_are_repeated(tmp_path: Path):
    task = ready(make_classes(tmp_path, rows=5), tmp_path / "cache")
    for step in range(4):
        batch = task.global_batch(step)
        assert len(batch) == 8
        assert set(batch.tolist()) == set(range(5))


def test_batches_hold_examples_of_like_length(tmp_path: Path):
    spec = make_classes(tmp_path, rows=64)
    task = ready(spec, tmp_path / "cache")
    lengths = np.diff(task.data.examples("train").offsets)
    batches = [lengths[task.global_batch(step)] for step in range(8)]
    in_order = sorted(batches, key=lambda batch: (batch.min(), batch.max()))
    # all 64 fit one bucket: sorted by length, the batches do not overlap
    for shorter, longer in pairwise(in_order):
        assert shorter.max() <= longer.min()
    assert [batch.max() for batch in batches] != [batch.max() for batch in in_order]
    again = make_task(spec, task.data, seed=0)
    assert all(np.array_equal(task.global_batch(s), again.global_batch(s)) for s in (9, 3, 0))


@pytest.mark.parametrize("labels", [("cold", "warm"), ("cold", "odd", "warm")])
def test_metrics_are_those_of_single_predictions(tmp_path: Path, labels: tuple[str, ...]):
    spec = make_classes(tmp_path, labels=labels, model=WILD)
    task = ready(spec, tmp_path / "cache")
    model = build_model(spec, task.data, seed=2).eval()
    truth, guess = predict(model, task, "test")
    assert len(set(guess)) == len(labels), "a constant answer proves nothing"
    metrics = evaluate(model, task, LocalWorkers(), "test")
    accuracy = float(np.mean(np.array(truth) == np.array(guess)))
    assert metrics == pytest.approx(
        {
            "accuracy": accuracy,
            "f1": f1(truth, guess, len(labels)),
            "matthews": matthews(truth, guess, len(labels)),
            "accuracy_f1": (accuracy + f1(truth, guess, len(labels))) / 2,
        }
    )


def f1(truth: list[int], guess: list[int], num_classes: int) -> float:
    """Of class 1 when there are two, else the mean over the classes."""
    scores = []
    for c in range(num_classes):
        hits = sum(t == g == c for t, g in zip(truth, guess, strict=True))
        scores.append(2 * hits / (truth.count(c) + guess.count(c)))
    return scores[1] if num_classes == 2 else sum(scores) / num_classes


def matthews(truth: list[int], guess: list[int], num_classes: int) -> float:
    """Gorodkin 2004: the correlation of the two assignments."""
    n = len(truth)
    hits = sum(t == g for t, g in zip(truth, guess, strict=True))
    pairs = [(truth.count(c), guess.count(c)) for c in range(num_classes)]
    covariance = hits * n - sum(t * g for t, g in pairs)
    spread = math.sqrt(
        (n * n - sum(g * g for _, g in pairs)) * (n * n - sum(t * t for t, _ in pairs))
    )
    return covariance / spread


@pytest.mark.parametrize("world", [2, 3, 9])
def test_any_number_of_workers_gives_the_same_metrics(
    tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(labelled, "EVALUATION_BATCH", 6)
    spec = make_classes(tmp_path, model=WILD)
    task = ready(spec, tmp_path / "cache")
    model = build_model(spec, task.data, seed=2).eval()
    alone = task.evaluate_shard(model, "test", 0, 1)
    shards = [task.evaluate_shard(model, "test", rank, world) for rank in range(world)]
    assert sum(len(labels) for labels, _ in shards) == len(alone[0]) == 40
    assert max(len(labels) for labels, _ in shards) < 40
    assert task.combine(shards, "test") == pytest.approx(task.combine([alone], "test"))


def test_pairs_tell_their_texts_apart(tmp_path: Path):
    rows = [
        (first, second, label)
        for (first, label), (second, _) in zip(
            reviews(24, seed=1), reviews(24, seed=2), strict=True
        )
    ]
    files = table_files(tmp_path, ["a", "b"], train=table(*rows, header="a\tb\tlabel"))
    spec = classification_task(files, model=BERT, vocab_size=160)
    task = ready(spec, tmp_path / "cache")
    batch = task.collate(np.arange(4))
    types = batch["token_type_ids"]
    assert set(types.unique().tolist()) == {0, 1}
    assert not (types * (1 - batch["attention_mask"])).any()
    assert "token_type_ids" not in ready(make_classes(tmp_path / "b"), tmp_path).collate(
        np.arange(4)
    )

"""Scores: batches, loss and correlations, against formulas written out."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.models import build_model
from orchestrator.tasks import Distillation, labelled, make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import BERT, Family, make_scores, ready, with_config

WILD = with_config(BERT, initializer_range=0.5)
"""Weights large enough that an untrained model does not answer alike to everything."""


def predict(model: Any, task: Any, split: str) -> tuple[list[float], list[float]]:
    """Scores and predictions, one example at a time and without padding."""
    scores, predictions = [], []
    for ids, types, score in task.data.examples(split):
        inputs = {"input_ids": ids, "token_type_ids": types}
        inputs = {k: torch.tensor([v.astype(int).tolist()]) for k, v in inputs.items()}
        scores.append(score)
        predictions.append(float(model(**inputs).logits.detach()))
    return scores, predictions


def correlation(one: list[float], other: list[float]) -> float:
    """Pearson's, as its definition has it."""
    n = len(one)
    a, b = ([value - math.fsum(values) / n for value in values] for values in (one, other))
    covariance = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def ranks(values: list[float]) -> list[float]:
    """Of each value the mean place of its equals in ascending order."""
    below = [sum(other < value for other in values) for value in values]
    return [b + (values.count(value) + 1) / 2 for b, value in zip(below, values, strict=True)]


def test_metrics_are_those_of_single_predictions(tmp_path: Path):
    spec = make_scores(tmp_path, model=WILD)
    task = ready(spec, tmp_path / "cache")
    model = build_model(spec, task.data, seed=2).eval()
    truth, found = predict(model, task, "test")
    assert len(set(truth)) < len(truth), "scores must tie, or ranks prove little"
    pearson = correlation(truth, found)
    spearman = correlation(ranks(truth), ranks(found))
    assert evaluate(model, task, LocalWorkers(), "test") == pytest.approx(
        {
            "pearson": pearson,
            "spearman": spearman,
            "pearson_spearman": (pearson + spearman) / 2,
            "mse": sum((t - f) ** 2 for t, f in zip(truth, found, strict=True)) / len(truth),
        },
        abs=1e-5,
    )


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson_spearman"])
def test_the_metric_of_the_task_is_one_of_them_and_higher_is_better(tmp_path: Path, metric: str):
    task = ready(make_scores(tmp_path, metric=metric), tmp_path / "cache")
    assert task.metric.name == metric
    assert task.metric.higher_is_better
    good, bad = (
        task.combine([[[1.0, 2.0, 3.0], found]], "test") for found in ([1, 2, 4], [3, 2, 0])
    )
    assert good[metric] > 0.9 > -0.9 > bad[metric]
    assert task.metric.drop(good[metric], bad[metric]) > 1


def test_ties_have_equal_ranks(scores: Family):
    task = make_task(scores.task, scores.data, seed=0)
    draw = random.Random(3)
    truth = [float(draw.randint(0, 5)) for _ in range(50)]
    found = [float(draw.randint(0, 9)) for _ in truth]
    metrics = task.combine([[truth, found]], "test")
    assert metrics["spearman"] == pytest.approx(correlation(ranks(truth), ranks(found)), abs=1e-12)
    assert metrics["pearson"] == pytest.approx(correlation(truth, found), abs=1e-12)


def test_a_constant_answer_has_no_correlation(scores: Family):
    task = make_task(scores.task, scores.data, seed=0)
    metrics = task.combine([[[1.0, 2.0, 4.0], [2.5, 2.5, 2.5]]], "test")
    assert metrics == {"pearson": 0, "spearman": 0, "pearson_spearman": 0, "mse": 4.75 / 3}
    # nor does a nearly constant one raise a warning, which tests take for an error
    almost = task.combine([[[1.0, 2.0, 4.0], [2.5, 2.5, 2.5 + 1e-15]]], "test")
    assert almost["spearman"] == pytest.approx(correlation([1, 2, 3], [1.5, 1.5, 3]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(scores: Family, value: float):
    task = make_task(scores.task, scores.data, seed=0)
    metrics = task.combine([[[1.0, 2.0, 4.0], [0.0, 1.0, value]]], "test")
    assert all(math.isnan(metrics[name]) for name in ("pearson", "spearman", "pearson_spearman"))


@pytest.mark.parametrize("world", [2, 3, 9])
def test_any_number_of_workers_gives_the_same_metrics(
    tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(labelled, "EVALUATION_BATCH", 6)
    spec = make_scores(tmp_path, model=WILD)
    task = ready(spec, tmp_path / "cache")
    model = build_model(spec, task.data, seed=2).eval()
    alone = task.evaluate_shard(model, "test", 0, 1)
    found = [task.evaluate_shard(model, "test", rank, world) for rank in range(world)]
    assert sum(len(labels) for labels, _ in found) == len(alone[0]) == 40
    assert max(len(labels) for labels, _ in found) < 40
    assert task.combine(found, "test") == pytest.approx(task.combine([alone], "test"))


def test_labels_of_a_batch_are_the_scores(scores: Family):
    task = make_task(scores.task, scores.data, seed=0)
    indices = np.array([5, 0, 11])
    batch = task.collate(indices)
    assert batch["labels"].dtype == torch.float32
    examples = scores.data.examples("train")
    assert batch["labels"].tolist() == [examples[int(i)][2] for i in indices]


def test_loss_is_the_squared_error_to_labels_and_teacher(scores: Family):
    task = make_task(scores.task, scores.data, seed=0)
    student, teacher = (build_model(scores.task, scores.data, seed).eval() for seed in (1, 2))
    batch = task.batch(0, 0, 1)
    inputs = task.model_inputs(batch)
    mine, theirs = (m(**inputs).logits.detach().squeeze(-1).double() for m in (student, teacher))
    hard = (mine - batch["labels"].double()).square().mean().item()
    soft = (mine - theirs).square().mean().item()
    assert task.loss(student, batch).item() == pytest.approx(hard, rel=1e-5)
    for weight, temperature in ((0.0, 1.0), (0.3, 1.0), (0.3, 4.0), (1.0, 1.0)):
        distillation = Distillation(teacher=teacher, weight=weight, temperature=temperature)
        loss = task.loss(student, batch, distillation).item()
        assert loss == pytest.approx((1 - weight) * hard + weight * soft, rel=1e-5)


def test_a_small_model_learns_the_order(scores: Family):
    """Of 40 pairs that it has not seen; chance is a correlation of 0 ± 0.16."""
    for record in scores.records:
        assert record.metric.name == "pearson_spearman"
        assert set(record.test) == {"pearson", "spearman", "pearson_spearman", "mse"}
        assert record.test["pearson_spearman"] > 0.8

"""What all kinds of task promise: shares of one batch, one loss, the same gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank import FlopL0, Pruner
from orchestrator.models import build_model
from orchestrator.tasks import Distillation, TrainingTask, make_task
from tests.orchestrator.small import Family, make_classes, make_lm, make_scores, ready


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def rows_of(batch: dict[str, Any]) -> list[tuple[list[int], Any]]:
    """Unpadded inputs with their labels: what a batch holds, whatever its padding."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return [
        (ids[keep].tolist(), label.tolist())
        for ids, keep, label in zip(batch["input_ids"], mask, batch["labels"], strict=True)
    ]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_shares_of_a_batch_are_a_partition(either: Family, workers: int):
    task = make_task(either.task, either.data, seed=5)
    whole = rows_of(task.batch(3, 0, 1))
    shares = [rows_of(task.batch(3, rank, workers)) for rank in range(workers)]
    assert len(whole) == task.batch_size
    assert {len(share) for share in shares} == {task.batch_size // workers}
    assert sorted(row for share in shares for row in share) == sorted(whole)


def test_batches_follow_from_seed_and_step_alone(either: Family):
    one, other = (make_task(either.task, either.data, seed=5) for _ in range(2))
    for _ in range(9):
        one.batch(0, 0, 1)  # what came before changes nothing
    steps = [0, 7, 23, 7]
    assert all(equal(one.batch(s, 0, 2), other.batch(s, 0, 2)) for s in steps)
    assert not equal(one.batch(0, 0, 1), one.batch(1, 0, 1))


def test_another_seed_gives_other_batches(either: Family):
    one, other = (make_task(either.task, either.data, seed=seed) for seed in (5, 6))
    assert not equal(one.batch(0, 0, 1), other.batch(0, 0, 1))


def test_distillation_loss_is_the_formula(either: Family):
    task = make_task(either.task, either.data, seed=0)
    student, teacher = (build_model(either.task, either.data, seed).eval() for seed in (1, 2))
    with torch.no_grad():  # an untrained classifier answers nearly alike to everything
        for model in (student, teacher):
            for parameter in model.parameters():
                parameter.mul_(4)
    batch = task.batch(0, 0, 1)
    weight, tau = 0.7, 2.5
    distillation = Distillation(teacher=teacher, weight=weight, temperature=tau)
    loss = task.loss(student, batch, distillation).item()
    plain = task.loss(student, batch).item()

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    num_classes = student(**inputs).logits.shape[-1]
    mine = student(**inputs).logits.double().reshape(-1, num_classes).tolist()
    theirs = teacher(**inputs).logits.double().reshape(-1, num_classes).tolist()
    total = 0.0
    for z, t, label in zip(mine, theirs, batch["labels"].flatten().tolist(), strict=True):
        if either.task.kind == "regression":
            total += (1 - weight) * (z[0] - label) ** 2 + weight * (z[0] - t[0]) ** 2
            continue
        hard = -log_probabilities(z, 1.0)[label]
        p, q = log_probabilities(t, tau), log_probabilities(z, tau)
        soft = float(np.sum(np.exp(p) * (p - q)))
        total += (1 - weight) * hard + weight * tau**2 * soft
    assert loss == pytest.approx(total / len(mine), rel=1e-5)
    assert loss != pytest.approx(plain, rel=1e-3)


def log_probabilities(logits: list[float], temperature: float) -> np.ndarray:
    scaled = np.array(logits) / temperature
    return scaled - np.log(np.exp(scaled).sum())


def test_the_teacher_learns_nothing(either: Family):
    task = make_task(either.task, either.data, seed=0)
    student, teacher = (build_model(either.task, either.data, seed) for seed in (1, 2))
    task.loss(student, task.batch(0, 0, 1), Distillation(teacher=teacher)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["lm", "classes", "scores"])
def test_two_workers_have_the_gradient_of_one(kind: str, tmp_path: Path):
    """Mean over two shares of (loss + penalty) against the whole batch: what makes a run with
    two workers the run with one."""
    make: Any = {"lm": make_lm, "classes": make_classes, "scores": make_scores}[kind]
    task = ready(make(tmp_path), tmp_path / "cache")
    model = build_model(make(tmp_path), task.data, seed=1)
    pruner = Pruner(model, FlopL0(density=0.4, gated_steps=4, anneal_fraction=0.5), seed=7)
    for _ in range(3):  # multipliers away from zero, target below 1
        pruner.control.lagrangian.ascend(1.0, 0.5)
        pruner.step()
    whole = gradients(pruner, task, 1)
    halves = gradients(pruner, task, 2)
    assert whole.keys() == halves.keys()
    assert any(name.endswith("gate.parameter") for name in whole)
    for name, gradient in whole.items():
        scale = float(gradient.abs().max())
        assert scale > 0 or "token_type" in name or "position" in name, name
        torch.testing.assert_close(halves[name], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))


def gradients(pruner: Pruner, task: TrainingTask, workers: int) -> dict[str, torch.Tensor]:
    """Mean over the workers of the gradient of loss plus penalty."""
    pruner.model.train()
    total: dict[str, torch.Tensor] = {}
    for rank in range(workers):
        pruner.model.zero_grad()
        (task.loss(pruner.model, task.batch(4, rank, workers)) + pruner.penalty()).backward()
        for name, parameter in pruner.model.named_parameters():
            if parameter.grad is not None:
                share = parameter.grad / workers
                total[name] = total[name] + share if name in total else share
    return total


def test_examples_for_timing_fit_the_task(either: Family):
    task = make_task(either.task, either.data, seed=0)
    inputs = task.example_inputs(3, 5)
    assert {tuple(value.shape) for value in inputs.values()} == {(3, 5)}
    assert int(inputs["input_ids"].max()) < either.data.vocab_size
    # more than the task ever reads is cut to what it reads: models have no more positions
    assert task.example_inputs(1, 10_000)["input_ids"].shape == (1, task.max_length)

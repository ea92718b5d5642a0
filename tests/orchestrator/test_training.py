"""One stretch of training: it learns, stops when it diverges, keeps the best, follows its rates."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank import FlopL0, Pruner
from lowrank.schedule import warmup_cosine
from lowrank.weight_groups import weight_groups
from orchestrator.errors import TrialError
from orchestrator.models import build_model
from orchestrator.records import CurvePoint
from orchestrator.stretch import Recorder, Stretch
from orchestrator.tasks import language_modelling, make_task
from orchestrator.training import evaluate, freeze_unused, train
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import GPT2, LENGTH, Family, make_lm, ready, with_config

STRETCH = Stretch(first_step=0, num_steps=12, max_grad_norm=1.0, evaluate_every=4)


class Twins:
    """Two workers of which the other always says the same."""

    rank, world = 0, 2
    device = torch.device("cpu")

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def report(self, progress: dict[str, Any], checkpoint: Path | None = None) -> None:
        pass

    def beat(self) -> None:
        pass


def run(
    family: Family,
    stretch: Stretch = STRETCH,
    rate: float = 5e-3,
    model: nn.Module | None = None,
    on_report: Any = None,
    sink: Any = None,
) -> tuple[nn.Module, list[CurvePoint]]:
    """Train a fresh model; returns it and its curve."""
    task = make_task(family.task, family.data, seed=0)
    model = model or build_model(family.task, family.data, seed=1)
    workers = LocalWorkers(on_report)
    recorder = Recorder(workers=workers, total_steps=stretch.num_steps, sink=sink)
    train(model, weight_groups(model.parameters(), rate, 0.01), task, workers, stretch, recorder)
    return model, recorder.curve


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_small_model_learns(either: Family):
    stretch = replace(STRETCH, num_steps=60, evaluate_every=30)
    model, curve = run(either, stretch)
    losses = [point.train_loss for point in curve if point.train_loss is not None]
    if either.task.kind == "regression":  # what the mean score leaves unexplained
        assert losses[0] == pytest.approx(either.data.examples("train").labels.var(), rel=0.5)
    else:
        chance = len(either.data.label_names) or either.data.vocab_size
        assert losses[0] == pytest.approx(math.log(chance), rel=0.15)
    assert losses[-1] < losses[0] - 0.2
    validations = [point.validation for point in curve if point.validation is not None]
    assert len(validations) == 2
    task = make_task(either.task, either.data, seed=0)
    assert validations[-1] == evaluate(model, task, LocalWorkers(), "validation")[task.metric.name]


def test_validations_come_at_their_steps_and_at_the_last(lm: Family):
    reports = []
    _, curve = run(
        lm,
        replace(STRETCH, first_step=100, num_steps=10),
        on_report=lambda progress, checkpoint: reports.append(progress),
    )
    assert [p.step for p in curve if p.validation is not None] == [104, 108, 110]
    assert [report["step"] for report in reports] == [104, 108, 110]
    assert {report["total_steps"] for report in reports} == {10}
    # nothing absent is reported: Ray would take None for a metric
    assert all(type(value) in (int, float, str) for report in reports for value in report.values())


def test_data_follow_the_global_step(lm: Family):
    """A stretch that begins at step 6 is the rest of one that begins at 0 (constant rate)."""
    steps = {}
    task = make_task(lm.task, lm.data, seed=0)
    for first in (0, 6):
        seen = steps.setdefault(first, [])
        task.global_batch = lambda step, seen=seen: (  # type: ignore[method-assign]
            seen.append(step) or type(task).global_batch(task, step)
        )
        model = build_model(lm.task, lm.data, seed=1)
        recorder = Recorder(workers=LocalWorkers(), total_steps=6)
        stretch = replace(STRETCH, first_step=first, num_steps=6)
        train(
            model,
            weight_groups(model.parameters(), 1e-3, 0),
            task,
            LocalWorkers(),
            stretch,
            recorder,
        )
    assert steps == {0: [0, 1, 2, 3, 4, 5], 6: [6, 7, 8, 9, 10, 11]}


@pytest.mark.parametrize("cause", ["rate", "weight"])
def test_divergence_stops_with_the_step(lm: Family, cause: str):
    model = build_model(lm.task, lm.data, seed=1)
    if cause == "weight":
        with torch.no_grad():
            next(model.parameters())[0, 0] = math.inf
    with pytest.raises(TrialError, match=r"training loss is (nan|inf) near step \d+: .* diverged"):
        run(lm, rate=1.0 if cause == "weight" else 1e30, model=model)


def test_divergence_is_noticed_between_validations(lm: Family):
    """A thousand steps of NaN until the next validation would be wasted."""
    model = build_model(lm.task, lm.data, seed=1)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(TrialError, match="near step 1:"):
        run(lm, replace(STRETCH, evaluate_every=1000), model=model)


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_weights_are_kept_if_asked(either: Family, keep_best: bool):
    """The model is spoilt after its second validation, so the last one is not the best."""
    model = build_model(either.task, either.data, seed=1)
    seen: list[tuple[float, dict[str, torch.Tensor]]] = []

    def spoil(progress: dict[str, Any], checkpoint: Path | None) -> None:
        seen.append((progress["validation"], weights_of(model)))
        if len(seen) == 2:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(-3)

    stretch = replace(STRETCH, num_steps=40, evaluate_every=10, keep_best=keep_best)
    run(either, stretch, rate=1e-2, model=model, on_report=spoil)
    sign = 1 if either.dense.metric.higher_is_better else -1
    best = max(range(len(seen)), key=lambda i: (sign * seen[i][0], -i))
    assert len(seen) == 4
    assert best < 3, "the test needs a last validation that is worse"
    assert same(seen[best if keep_best else -1][1], weights_of(model))


def test_rates_follow_the_schedule_but_those_of_gates(lm: Family):
    task = make_task(lm.task, lm.data, seed=0)
    how = FlopL0(density=0.5, gated_steps=8, anneal_fraction=5 / 8)
    pruner = Pruner(build_model(lm.task, lm.data, seed=1), how)
    groups = pruner.parameter_groups(2e-3)
    rates: list[list[float]] = []
    recorder = Recorder(
        workers=LocalWorkers(),
        total_steps=8,
        sink=lambda points: rates.append([group["lr"] for group in groups]),
    )
    gate_rate = groups[-1]["lr"]
    stretch = replace(STRETCH, num_steps=8, evaluate_every=1, warmup_fraction=0.25, pruner=pruner)
    train(pruner.model, groups, task, LocalWorkers(), stretch, recorder)
    expected = [2e-3 * warmup_cosine(step, 8, 0.25) for step in range(8)]
    assert [rate[0] for rate in rates] == pytest.approx(expected)
    assert [rate[1] for rate in rates] == pytest.approx(expected)
    assert [rate[2] for rate in rates] == [gate_rate] * 8
    assert [point.learning_rate for point in recorder.curve] == pytest.approx(expected)
    assert len(set(expected)) > 5


def test_curve_points_of_a_pruned_stretch(lm: Family):
    task = make_task(lm.task, lm.data, seed=0)
    how = FlopL0(density=0.5, gated_steps=7, anneal_fraction=4 / 7)
    pruner = Pruner(build_model(lm.task, lm.data, seed=1), how)
    recorder = Recorder(workers=LocalWorkers(), total_steps=7)
    stretch = replace(STRETCH, num_steps=7, evaluate_every=5, pruner=pruner)
    train(pruner.model, pruner.parameter_groups(1e-3), task, LocalWorkers(), stretch, recorder)
    curve = recorder.curve
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6, 7]
    assert [point.phase for point in curve] == ["anneal"] * 4 + ["hold"] * 3
    assert [point.target_density for point in curve] == pytest.approx(
        [1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]
    )
    assert curve[0].lambda_linear == 0
    assert curve[-1].lambda_linear > 0
    assert 0 <= curve[0].undecided < curve[-1].undecided <= 1
    assert [point.validation is None for point in curve] == [True] * 4 + [False, True, False]
    assert [point.seconds for point in curve] == sorted(point.seconds for point in curve)
    json.dumps([asdict(point) for point in curve], allow_nan=False)


def test_a_validation_that_is_not_finite_is_absent(tmp_path: Path):
    """The loss is thousands of nats, finite; its exponential is not."""
    task = ready(
        make_lm(tmp_path, level="word", model=with_config(GPT2, initializer_range=300.0)),
        tmp_path / "cache",
    )
    model = build_model(
        make_lm(tmp_path, model=with_config(GPT2, initializer_range=300.0)), task.data, seed=1
    )
    recorder = Recorder(workers=LocalWorkers(), total_steps=2)
    stretch = replace(STRETCH, num_steps=2, evaluate_every=1)
    train(
        model, weight_groups(model.parameters(), 1e-6, 0), task, LocalWorkers(), stretch, recorder
    )
    assert [point.validation for point in recorder.curve] == [None, None]
    assert min(point.train_loss for point in recorder.curve) > 710
    json.dumps([asdict(point) for point in recorder.curve], allow_nan=False)


def test_points_reach_the_sink_once_and_in_order(lm: Family):
    batches: list[list[CurvePoint]] = []
    _, curve = run(lm, replace(STRETCH, num_steps=10), sink=lambda points: batches.append(points))
    assert [point for batch in batches for point in batch] == curve
    assert [batch[-1].step for batch in batches] == [4, 8, 10]


def test_only_rank_0_writes(lm: Family, monkeypatch: pytest.MonkeyPatch):
    class Second(Twins):
        rank = 1

    monkeypatch.setattr(language_modelling, "EVALUATION_BATCH_TOKENS", LENGTH)
    recorder = Recorder(workers=Second(), total_steps=4, sink=lambda points: pytest.fail("wrote"))
    task = make_task(lm.task, lm.data, seed=0)
    model = build_model(lm.task, lm.data, seed=1)
    stretch = replace(STRETCH, num_steps=4)
    train(model, weight_groups(model.parameters(), 1e-3, 0), task, Second(), stretch, recorder)


def test_no_steps_change_nothing(lm: Family):
    model = build_model(lm.task, lm.data, seed=1)
    before = weights_of(model)
    _, curve = run(lm, replace(STRETCH, num_steps=0), model=model)
    assert curve == []
    assert same(before, weights_of(model))


class TestFreezing:
    """DistributedDataParallel stops at parameters that the loss does not reach."""

    def model(self, family: Family) -> nn.Module:
        model = build_model(family.task, family.data, seed=1)
        model.register_parameter("unused", nn.Parameter(torch.ones(3)))
        return model

    def test_what_the_loss_does_not_reach_is_frozen(self, either: Family):
        model = self.model(either)
        task = make_task(either.task, either.data, seed=0)
        assert freeze_unused(model, task, Twins()) == ["unused"]
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["unused"]
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_gates_are_never_frozen(self, lm: Family):
        pruner = Pruner(build_model(lm.task, lm.data, seed=1), FlopL0(density=0.5))
        assert freeze_unused(pruner.model, make_task(lm.task, lm.data, seed=0), Twins()) == []

    def test_one_worker_needs_none(self, lm: Family):
        model = self.model(lm)
        assert freeze_unused(model, make_task(lm.task, lm.data, 0), LocalWorkers()) == []
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_training_goes_on_without_them(self, lm: Family):
        model = self.model(lm)
        task = make_task(lm.task, lm.data, seed=0)
        recorder = Recorder(workers=Twins(), total_steps=4)
        train(
            model,
            weight_groups(model.parameters(), 1e-2, 0.5),
            task,
            Twins(),
            replace(STRETCH, num_steps=4),
            recorder,
        )
        assert model.unused.tolist() == [1, 1, 1]


def test_a_point_is_told_once_however_often_it_is_asked_for():
    told: list[dict[str, Any]] = []
    sent: list[list[CurvePoint]] = []
    workers = LocalWorkers(lambda progress, checkpoint: told.append(progress))
    recorder = Recorder(workers=workers, total_steps=9, sink=sent.append)
    recorder.tell()
    assert told == [], "there is nothing yet"
    point = CurvePoint(step=2, phase="dense", seconds=0, train_loss=3.0)
    recorder.add(point)
    recorder.tell()
    recorder.tell()
    recorder.report(replace(point, step=3, validation=2.0))
    recorder.tell()
    assert [(each["step"], each.get("between")) for each in told] == [(2, True), (3, None)]
    assert [[each.step for each in batch] for batch in sent] == [[2], [3]]
    # from an earlier state on: there the last point is another one
    recorder.curve.pop()
    recorder.tell()
    assert told[-1]["step"] == 2

"""The stages of a compression: what workers share of the inputs, teachers, the warning."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank.factorize import factorize, factorize_rows
from lowrank.gated_embedding import GatedEmbedding
from lowrank.hf import load_pretrained
from lowrank.linear import dense_weight
from lowrank.moments import InputMoments
from lowrank.surgery import find_layers
from orchestrator.compression import (
    _counts,
    _moments,
    make_distillation,
    make_pruner,
    make_stretch,
)
from orchestrator.methods import make_method
from orchestrator.models import build_model
from orchestrator.tasks import TrainingTask, make_task
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import Family, make_classes, make_job, make_lm, method, ready

SRU = {"type": "sru", "config": {"hidden_size": 16, "num_hidden_layers": 2, "dropout": 0.0}}
BATCHES = 3


@dataclass
class OneOf:
    """One of several workers; what the others gathered is known."""

    rank: int
    gathered: list[Any]

    device = torch.device("cpu")

    @property
    def world(self) -> int:
        return len(self.gathered)

    def gather(self, value: Any) -> list[Any]:
        # through the wire, as torch.distributed does even for a worker's own
        self.gathered[self.rank] = pickle.dumps(value)
        return [pickle.loads(each) for each in self.gathered if each is not None]


@dataclass(frozen=True)
class Setup:
    task: TrainingTask
    model: nn.Module
    layers: dict[str, nn.Module]

    def moments(self, workers: Any, num_batches: int = BATCHES) -> dict[str, InputMoments]:
        return _moments(self.model, self.layers, self.task, workers, num_batches)

    def over(self, world: int) -> list[dict[str, InputMoments]]:
        """What each of several workers ends with."""
        gathered: list[Any] = [None] * world
        for rank in range(world):
            self.moments(OneOf(rank, gathered))
        return [self.moments(OneOf(rank, gathered)) for rank in range(world)]


@pytest.fixture(params=["gpt2", "bert", "sru"])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    fields = {"model": SRU} if request.param == "sru" else {}
    spec = (make_classes if request.param == "bert" else make_lm)(tmp_path, **fields)
    task = ready(spec, tmp_path / "cache")
    # in double, so that the shape of a share does not show in the rounding of activations
    model = build_model(spec, task.data, seed=1).double()
    layers = find_layers(model, exclude=["*lm_head*", "*classifier*", "*pooler*"]).layers
    return Setup(task, model, layers)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-300))


@pytest.mark.parametrize("world", [2, 4])
def test_workers_together_see_what_one_would_see_alone(setup: Setup, world: int):
    alone = setup.moments(LocalWorkers())
    for found in setup.over(world):
        assert found.keys() == alone.keys() == setup.layers.keys()
        for name, one in alone.items():
            assert found[name].count == one.count
            assert difference(found[name].mean, one.mean) < 1e-10
            assert difference(found[name].covariance, one.covariance) < 1e-10


def test_all_workers_hold_the_same_bits(setup: Setup):
    """Else their factors would differ, and with them the models that they train."""
    first, second = setup.over(2)
    for name, one in first.items():
        assert torch.equal(one.mean, second[name].mean)
        assert torch.equal(one.covariance, second[name].covariance)


def test_a_share_alone_sees_something_else(setup: Setup):
    """What makes the two tests above worth something."""
    alone = setup.moments(LocalWorkers())
    half = setup.moments(OneOf(0, [None, None]))
    for name, one in alone.items():
        assert half[name].count < one.count
        assert difference(half[name].covariance, one.covariance) > 1e-3


def test_moments_are_of_the_training_batches_without_padding(setup: Setup):
    """By brute force: rows that the first layer receives, batch by batch."""
    name, layer = next(iter(setup.layers.items()))
    rows: list[torch.Tensor] = []
    masks: list[torch.Tensor | None] = []
    handle = layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].detach()))
    for step in range(BATCHES):
        inputs = setup.task.model_inputs(setup.task.batch(step, 0, 1))
        masks.append(inputs.get("attention_mask"))
        with torch.no_grad():
            setup.model.eval()(**inputs)
    handle.remove()
    width = rows[0].shape[-1]
    real = torch.cat(
        [
            x.reshape(-1, width) if mask is None else x[mask.bool()]
            for x, mask in zip(rows, masks, strict=True)
        ]
    )
    found = setup.moments(LocalWorkers())[name]
    assert found.count == len(real)
    assert difference(found.mean, real.mean(0)) < 1e-10
    assert difference(found.covariance, torch.cov(real.t(), correction=0)) < 1e-10


def test_factors_of_two_workers_are_those_of_one(setup: Setup):
    """Factors have signs and, where energies are equal, directions that rounding could turn."""
    alone, (together, _) = setup.moments(LocalWorkers()), setup.over(2)
    for name, layer in setup.layers.items():
        weight = dense_weight(layer)
        one, two = (
            factorize(weight, second_moment=moments[name].covariance)
            for moments in (alone, together)
        )
        product = (one.up[:, :4] @ one.down[:4], two.up[:, :4] @ two.down[:4])
        assert difference(*product) < 1e-6


def test_tokens_of_an_embedding_are_counted_over_all_training_data(setup: Setup):
    """By brute force; a table may have rows that no token has."""
    table = nn.Embedding(setup.task.data.vocab_size + 3, 4)
    data, found = setup.task.data, Counter[int]()
    if data.label_names:
        for ids, _, _ in data.examples("train"):
            found.update(ids.tolist())
    else:
        found.update(data.tokens("train").tolist())
    counts = _counts(setup.task, table)
    assert counts.sum() > 200
    assert counts.tolist() == [found[token] for token in range(table.num_embeddings)]


def test_an_embedding_starts_from_the_counts_and_from_what_enters_its_head(lm: Family):
    spec = method(kind="low-rank", steps=6, start="covariance", embeddings=True, density=0.3)
    job = make_job(lm.task, lm.data, spec, lm.dense.export)
    model, task = load_pretrained(lm.dense.export), make_task(lm.task, lm.data, job.batch_seed)
    head, table = {"transformer.wte": model.lm_head}, model.transformer.wte
    moments = _moments(model, head, task, LocalWorkers(), spec.calibration_batches)
    wanted = factorize_rows(
        table.weight,
        _counts(task, table),
        second_moment=moments["transformer.wte"].second_moment,
    )
    layer = make_pruner(job, make_method(job.method_spec), model, task, LocalWorkers()).layers[
        "transformer.wte"
    ]
    assert isinstance(layer, GatedEmbedding)
    product = (layer.up[:, :3] @ layer.down[:3]).detach()
    assert difference(product, wanted.up[:, :3] @ wanted.down[:3]) < 1e-4


class TestTeacher:
    def test_is_the_dense_reference_frozen(self, lm: Family):
        fields = {"distill": 0.3, "distill_temperature": 2.0, "distill_hidden": 0.7}
        job = make_job(lm.task, lm.data, method(**fields), lm.dense.export)
        made = make_distillation(job, LocalWorkers())
        assert made is not None
        assert (made.weight, made.temperature, made.hidden) == (0.3, 2.0, 0.7)
        assert not made.teacher.training
        assert not any(parameter.requires_grad for parameter in made.teacher.parameters())
        reference = load_pretrained(lm.dense.export).state_dict()
        assert all(torch.equal(v, reference[k]) for k, v in made.teacher.state_dict().items())

    @pytest.mark.parametrize(
        ("fields", "wanted"),
        [
            ({"distill": 0.0}, False),
            ({"distill": 0.0, "distill_hidden": 0.1}, True),
            ({"distill": 0.1}, True),
        ],
    )
    def test_is_there_if_something_is_learnt_from_it(
        self, lm: Family, fields: dict[str, float], wanted: bool
    ):
        job = make_job(lm.task, lm.data, method(**fields), lm.dense.export)
        assert (make_distillation(job, LocalWorkers()) is not None) == wanted

    def test_a_dense_model_has_none(self, lm: Family):
        assert make_distillation(make_job(lm.task, lm.data, method()), LocalWorkers()) is None


def test_stretches_share_what_the_spec_says(lm: Family):
    job = make_job(lm.task, lm.data, method(max_grad_norm=0.25), lm.dense.export)
    stretch = make_stretch(job, None, 7, 5, phase="finetune")
    assert (stretch.first_step, stretch.num_steps, stretch.phase) == (7, 5, "finetune")
    assert stretch.max_grad_norm == 0.25
    assert stretch.evaluate_every == lm.task.evaluate_every
    assert stretch.precision == lm.task.precision


@pytest.mark.parametrize(
    ("fields", "warns"),
    [
        # multipliers that hardly move leave all gates open
        ({"kind": "flop-l0", "penalty_lr": 1e-9, "gate_lr": 1e-9}, True),
        ({"kind": "agp"}, False),
        ({"kind": "low-rank"}, False),
    ],
)
def test_gates_that_chose_nothing_are_reported(
    lm: Family, fields: dict[str, Any], warns: bool, caplog: pytest.LogCaptureFixture
):
    how = method(**fields, density=0.4)
    with caplog.at_level(logging.WARNING, logger="orchestrator.compression"):
        run_job(make_job(lm.task, lm.data, how, lm.dense.export), LocalWorkers())
    messages = [r.getMessage() for r in caplog.records if r.name == "orchestrator.compression"]
    if warns:
        (message,) = messages
        assert "the gates ended at density 1.000, target 0.400" in message
        assert "the gated steps (6)" in message
    else:
        assert messages == []

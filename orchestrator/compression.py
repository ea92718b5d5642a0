"""The stages of one compression: gated training, projection, recovery."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.density import FactoredShape, LayerShape
from lowrank.hf import load_pretrained
from lowrank.methods import Method
from lowrank.moments import InputMoments, collect_moments
from lowrank.projection import Projection
from lowrank.pruner import Pruner
from lowrank.surgery import find_layers
from lowrank.weight_groups import weight_groups
from orchestrator.export_model import Trained
from orchestrator.job import Job
from orchestrator.methods import make_currency, make_method
from orchestrator.model_check import check_pass
from orchestrator.resume import Keeper
from orchestrator.stretch import Recorder, Stretch
from orchestrator.tasks import Distillation, TrainingTask
from orchestrator.training import evaluate, train
from orchestrator.workers import Workers

logger = logging.getLogger(__name__)


def compress(
    job: Job, task: TrainingTask, workers: Workers, recorder: Recorder, keeper: Keeper
) -> Trained:
    """Insert the method's layers into the dense reference, choose the structure, recover.

    Raises:
        LowRankError: No layer matches the patterns, or the density is out of reach.
        ModelError: The model does not work with the inserted layers.
        DivergedError: Training diverged.
    """
    assert job.dense is not None
    method = job.method_spec
    model = load_pretrained(job.dense).to(workers.device)
    distillation = make_distillation(job, workers)
    pruner = make_pruner(job, make_method(method), model, task, workers)
    pruner.project()  # a density that not even the floors meet must not cost a training run either
    check_pass(pruner.model, task)  # some models look into their layers, and find gates
    keeper.restructure(pruner)
    if not pruner.finished:
        gated = make_stretch(
            job,
            distillation,
            0,
            method.gated_steps,
            pruner=pruner,
            schedule_steps=method.steps,
        )
        keeper.facts = choose(job, pruner, task, workers, gated, recorder, keeper)
    finetune = make_stretch(
        job,
        distillation,
        method.gated_steps,
        method.finetune_steps,
        schedule_steps=method.steps,
        keep_best=True,
        phase="finetune",
    )
    return recover(job, pruner, task, workers, finetune, recorder, keeper)


def choose(
    job: Job,
    pruner: Pruner,
    task: TrainingTask,
    workers: Workers,
    gated: Stretch,
    recorder: Recorder,
    keeper: Keeper,
) -> dict[str, Any]:
    """Gated training and projection: afterwards the pruner's model is small.

    Returns:
        What is known of the projection: fields of `Trained`, JSON.
    """
    train_gated(job, pruner, task, workers, gated, recorder, keeper)
    projection, measured = _project(pruner, task, workers)
    small = pruner.finish(projection)
    measured["validation_after"] = evaluate(small, task, workers, "validation")[task.metric.name]
    return {"projection": measured, "ranks": _ranks(pruner, projection)}


def train_gated(
    job: Job,
    pruner: Pruner,
    task: TrainingTask,
    workers: Workers,
    gated: Stretch,
    recorder: Recorder,
    keeper: Keeper,
) -> None:
    """Weights and gates, until the structure can be chosen."""
    rate, decay = job.method_spec.gated_learning_rate, job.task_spec.dense.weight_decay
    groups = pruner.parameter_groups(rate, decay)
    train(pruner.model, groups, task, workers, gated, recorder, keeper)


def recover(
    job: Job,
    pruner: Pruner,
    task: TrainingTask,
    workers: Workers,
    finetune: Stretch,
    recorder: Recorder,
    keeper: Keeper,
) -> Trained:
    """Training of the small model of a finished pruner."""
    recorder.realized_density = keeper.facts.get("projection", {}).get("realized_density")
    rate, decay = job.method_spec.finetune_learning_rate, job.task_spec.dense.weight_decay
    groups = weight_groups(pruner.model.parameters(), rate, decay)
    train(pruner.model, groups, task, workers, finetune, recorder, keeper)
    return Trained(model=pruner.model, prunable=list(pruner.shapes), **keeper.facts)


def make_distillation(job: Job, workers: Workers) -> Distillation | None:
    """The dense reference as a teacher, if the method wants one."""
    method = job.method_spec
    if job.dense is None or (method.distill == 0 and method.distill_hidden == 0):
        return None
    teacher = load_pretrained(job.dense).to(workers.device).requires_grad_(False)
    return Distillation(
        teacher=teacher,
        weight=method.distill,
        temperature=method.distill_temperature,
        hidden=method.distill_hidden,
    )


def make_pruner(
    job: Job, method: Method, model: nn.Module, task: TrainingTask, workers: Workers
) -> Pruner:
    """The layers of a method in place of those that the job selects, on the job's data."""
    spec = job.method_spec
    match = find_layers(model, spec.include, spec.exclude, spec.embeddings)
    moments, counts = None, None
    if method.needs_moments:
        moments = _moments(model, match.multiplying, task, workers, spec.calibration_batches)
        counts = {name: _counts(task, table) for name, table in match.tables.items()}
    return Pruner(
        model,
        method,
        spec.include,
        spec.exclude,
        embeddings=spec.embeddings,
        seed=job.seed,
        moments=moments,
        counts=counts,
        currency=make_currency(spec.budget, model, match, task, workers),
    )


def _counts(task: TrainingTask, table: nn.Module) -> Tensor:
    """How often each of a table's tokens occurs in the training data; rows may have no token."""
    assert isinstance(table.weight, Tensor)
    counts = torch.zeros(len(table.weight), dtype=torch.float64)
    first = getattr(table, "first_token", 0)
    found = torch.from_numpy(task.data.token_counts("train")[first : first + len(counts)])
    counts[: len(found)] = found
    return counts


def _moments(
    model: nn.Module,
    layers: dict[str, nn.Module],
    task: TrainingTask,
    workers: Workers,
    num_batches: int,
) -> dict[str, InputMoments]:
    """Of each layer's inputs over training batches, shared by all workers."""
    shares = (task.batch(step, workers.rank, workers.world) for step in range(num_batches))
    batches = (
        {k: v.to(workers.device) for k, v in task.model_inputs(share).items()} for share in shares
    )
    shards = workers.gather(collect_moments(model, layers, batches))
    return {
        name: shards[0][name].merge([shard[name] for shard in shards[1:]]).moments()
        for name in layers
    }


def make_stretch(
    job: Job, distillation: Distillation | None, first_step: int, num_steps: int, **extras: Any
) -> Stretch:
    """A stretch of the compression's training with what all of them share."""
    spec, method = job.task_spec, job.method_spec
    return Stretch(
        first_step=first_step,
        num_steps=num_steps,
        max_grad_norm=method.max_grad_norm,
        evaluate_every=spec.evaluate_every,
        precision=spec.precision,
        distillation=distillation,
        **extras,
    )


def _project(
    pruner: Pruner, task: TrainingTask, workers: Workers
) -> tuple[Projection, dict[str, float]]:
    """The projection, and what was true just before it."""
    expected = float(pruner.expected_density().detach())
    method = pruner.method
    # within a tenth of the way from 1 to the target, the gates have made most of the choice
    if method.gated_steps and expected > method.density + 0.1 * (1 - method.density):
        logger.warning(
            "the gates ended at density %.3f, target %.3f: the projection has to cut the rest; "
            "raise penalty_lr, gate_lr or the gated steps (%d)",
            expected,
            method.density,
            method.gated_steps,
        )
    before = evaluate(pruner.model, task, workers, "validation")[task.metric.name]
    projection = pruner.project()
    return projection, {
        "expected_density": expected,
        "realized_density": projection.density,
        "validation_before": before,
    }


def _ranks(pruner: Pruner, projection: Projection) -> dict[str, dict[str, int]]:
    """Per layer of a factorized model; empty for methods that prune other units."""
    shapes, costs = pruner.control.shapes, pruner.control.costs
    if any(not isinstance(pruner.method.cost(shape), LayerShape) for shape in shapes.values()):
        return {}
    return {
        name: {
            "rank": rank,
            "full_rank": shapes[name].full_rank,
            "in_features": shapes[name].in_features,
            "out_features": shapes[name].out_features,
            "dense": int(costs[name].cost(rank) >= costs[name].dense_cost),
            **({"factored": 1} if isinstance(shapes[name], FactoredShape) else {}),
        }
        for name, rank in projection.ranks.items()
    }

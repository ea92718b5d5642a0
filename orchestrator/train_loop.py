"""From a task to a finished, exported, recounted model; a plain function on each worker.

Two jobs: train the dense reference, or compress it. Neither knows Ray: the same code runs in a
test, under `lowrank compress`, and on every worker of a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import transformers

from lowrank.hf import load_pretrained
from lowrank.methods import FixedRank, Start
from lowrank.pruner import Pruner
from lowrank.surgery import find_layers
from lowrank.weight_groups import weight_groups
from orchestrator.bucket.kept import states_at
from orchestrator.chain import link
from orchestrator.compression import compress, make_distillation, make_stretch
from orchestrator.data.prepare import PreparedData
from orchestrator.descent import branch, descend
from orchestrator.errors import DivergedError
from orchestrator.export_model import Trained, export_model
from orchestrator.job import Job
from orchestrator.ladder import Ladder
from orchestrator.model_check import check_pass
from orchestrator.models import auto_class_of, build_model, start_at_mean
from orchestrator.records import CurvePoint, ModelRecord
from orchestrator.resume import Keeper
from orchestrator.small_model import narrower_config
from orchestrator.stretch import Recorder, Stretch
from orchestrator.tasks import TrainingTask, make_task
from orchestrator.training import train
from orchestrator.workers import Workers

logger = logging.getLogger(__name__)

LOWER_RATE = 0.5
"""Of the learning rate after a divergence. Searches try rates that are a factor of two to three
apart, so half of one is a rate that could have been drawn."""

Sink = Callable[[list[CurvePoint]], None]
T = TypeVar("T")


def run_job(job: Job, workers: Workers, sink: Sink | None = None) -> ModelRecord:
    """Train, export, load again, evaluate what was exported, and report it with its record.

    Goes on from the last training state that an earlier attempt left.

    Raises:
        DivergedError: Training diverged, and again at a lower rate.
        ModelError: The model cannot be built, or fails on inputs as long as the task's.
        LowRankError: No layer matches the patterns, or the density is out of reach.
    """
    return run_job_on(_task_of(job), job, workers, sink)


def run_job_on(
    task: TrainingTask, job: Job, workers: Workers, sink: Sink | None = None
) -> ModelRecord:
    """`run_job` once the job's task is there."""
    parts = _begin(task, job, workers, sink)
    trained = _train(_stage(job), job, *parts)
    _, _, recorder, keeper = parts
    trained = replace(trained, rate_factor=keeper.rate_factor, worlds=keeper.worlds)
    return export_model(job, task, workers, recorder, trained)


def run_trunk(job: Job, workers: Workers, sink: Sink | None = None) -> None:
    """The training that the models of a ladder share, with the same errors; leaves its starts."""
    parts = _begin(_task_of(job), job, workers, sink)
    _train(descend, job, *parts)
    recorder = parts[2]
    recorder.flush()


Parts = tuple[TrainingTask, Workers, Recorder, Keeper]


def _task_of(job: Job) -> TrainingTask:
    return make_task(job.task_spec, PreparedData.open(Path(job.data)), job.batch_seed)


def _begin(task: TrainingTask, job: Job, workers: Workers, sink: Sink | None) -> Parts:
    torch.manual_seed(job.worker_seed(workers.rank))
    recorder = Recorder(workers=workers, total_steps=_num_steps(job), sink=sink)
    states = states_at(job.snapshots, job.num_snapshots) if job.snapshots else None
    keeper = Keeper(states, workers)
    return task, workers, recorder, keeper


def _stage(job: Job) -> Callable[[Job, TrainingTask, Workers, Recorder, Keeper], Trained]:
    if job.ladder is not None:
        return link if job.ladder["chain"] else branch
    stages = {"dense": _train_dense, "from-scratch": _train_small}
    return stages.get("dense" if job.dense is None else job.method_spec.kind, compress)


def _train(
    stage: Callable[[Job, TrainingTask, Workers, Recorder, Keeper], T],
    job: Job,
    task: TrainingTask,
    workers: Workers,
    recorder: Recorder,
    keeper: Keeper,
) -> T:
    """The stage, and once more from its last state at a lower rate if it diverges."""
    try:
        return stage(job, task, workers, recorder, keeper)
    except DivergedError as error:
        if keeper.rate_factor < 1:
            rate = f"{keeper.rate_factor:g} of its learning rate"
            raise DivergedError(f"{error.reason}, as before, now at {rate}") from error
        logger.warning("%s; once more from the last state, at %g of the rate", error, LOWER_RATE)
    # not in the handler: the error holds on to the model that diverged
    keeper.roll_back(LOWER_RATE)
    recorder.forget()
    torch.manual_seed(job.worker_seed(workers.rank))
    return _train(stage, job, task, workers, recorder, keeper)


def _num_steps(job: Job) -> int:
    if job.ladder is not None:
        return Ladder(**job.ladder).num_steps
    steps = job.method_spec.steps
    if job.dense is None:
        return job.task_spec.dense.steps
    return steps + job.task_spec.dense.steps if job.method_spec.kind == "from-scratch" else steps


def _train_dense(
    job: Job, task: TrainingTask, workers: Workers, recorder: Recorder, keeper: Keeper
) -> Trained:
    spec = job.task_spec
    model = build_model(spec, task.data, job.seed).to(workers.device)
    # before any training: a pattern that matches nothing must not cost a training run
    method = job.method_spec
    prunable = list(find_layers(model, method.include, method.exclude, method.embeddings).layers)
    check_pass(model, task)
    torch.manual_seed(job.worker_seed(workers.rank))
    stretch = Stretch(
        first_step=0,
        num_steps=spec.dense.steps,
        max_grad_norm=method.max_grad_norm,
        evaluate_every=spec.evaluate_every,
        warmup_fraction=spec.dense.warmup_fraction,
        precision=spec.precision,
        keep_best=True,
    )
    groups = weight_groups(model.parameters(), spec.dense.learning_rate, spec.dense.weight_decay)
    train(model, groups, task, workers, stretch, recorder, keeper)
    return Trained(model=model, prunable=prunable)


def _train_small(
    job: Job, task: TrainingTask, workers: Workers, recorder: Recorder, keeper: Keeper
) -> Trained:
    """A small model with fresh weights, for as many steps as the dense one and its compression."""
    assert job.dense is not None
    spec, method = job.task_spec, job.method_spec
    dense = load_pretrained(job.dense)
    layers = find_layers(dense, method.include, method.exclude, method.embeddings).layers
    torch.manual_seed(job.seed)
    auto = getattr(transformers, auto_class_of(spec))
    if method.form == "width":
        config = narrower_config(
            dense.config, auto, method.density, method.include, method.exclude, method.embeddings
        )
        model = start_at_mean(auto.from_config(config).float(), spec, task.data)
    else:
        model = start_at_mean(auto.from_config(dense.config).float(), spec, task.data)
        uniform = FixedRank(
            density=method.density, start=Start(kind="svd"), rank_multiple=method.rank_multiple
        )
        chosen = method.include, method.exclude
        model = Pruner(model, uniform, *chosen, embeddings=method.embeddings).finish()
    model = model.to(workers.device)
    check_pass(model, task)
    torch.manual_seed(job.worker_seed(workers.rank))
    steps = recorder.total_steps
    stretch = make_stretch(
        job, make_distillation(job, workers), 0, steps, keep_best=True, phase="from-scratch"
    )
    groups = weight_groups(
        model.parameters(), method.finetune_learning_rate, spec.dense.weight_decay
    )
    train(model, groups, task, workers, stretch, recorder, keeper)
    return Trained(model=model, prunable=list(layers))

"""From a task to a finished, exported, recounted model; a plain function on each worker.

Two jobs: train the dense reference, or compress it. Neither knows Ray: the same code runs in a
test, under `lowrank compress`, and on every worker of a cluster.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from lowrank.counting import macs_per_token, num_matrix_parameters
from lowrank.density import realized_density
from lowrank.export import WEIGHTS, num_stored_parameters, read_manifest, sha256_of
from lowrank.gate import GateConfig
from lowrank.hf import load_pretrained, load_tokenizer, save_pretrained
from lowrank.projection import Projection
from lowrank.pruner import FlopL0, Pruner
from lowrank.surgery import find_layers
from orchestrator.data.prepare import PreparedData
from orchestrator.errors import ModelError, TrialError
from orchestrator.models import auto_class_of, build_model
from orchestrator.records import RECORD, CurvePoint, Densities, ModelRecord, Size
from orchestrator.spec import Classification, LanguageModelling, MethodSpec, Task, content_hash
from orchestrator.tasks import TrainingTask, make_task
from orchestrator.training import Recorder, Stretch, evaluate, train, weight_groups
from orchestrator.workers import Workers

logger = logging.getLogger(__name__)

COUNT_LENGTH = 128
"""Tokens of the one sequence on which multiply-accumulates are counted (or the task's limit)."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs, as JSON-able values: it travels through Ray."""

    key: str
    task: dict[str, Any]
    """The task of the spec."""
    method: dict[str, Any]
    """The method with searched values filled in; names the prunable layers for a dense job too."""
    data: str
    """Folder of the prepared data, absolute."""
    seed: int
    dense: str | None = None
    """Folder of the exported dense reference; None makes this a dense job."""

    @property
    def task_spec(self) -> LanguageModelling | Classification:
        return TypeAdapter(Task).validate_python(self.task)

    @property
    def method_spec(self) -> MethodSpec:
        return MethodSpec.model_validate(self.method)


Sink = Callable[[list[CurvePoint]], None]


def run_job(job: Job, workers: Workers, sink: Sink | None = None) -> ModelRecord:
    """Train, export, load again, evaluate what was exported, and report it with its record.

    Raises:
        TrialError: Training diverged.
        ModelError: The model cannot be built, or fails on inputs as long as the task's.
        LowRankError: No layer matches the patterns, or the density is out of reach.
    """
    task = make_task(job.task_spec, PreparedData.open(Path(job.data)), job.seed)
    torch.manual_seed(_worker_seed(job, workers.rank))
    if job.dense is None:
        return _train_dense(job, task, workers, sink)
    return _compress(job, task, workers, sink)


def _train_dense(job: Job, task: TrainingTask, workers: Workers, sink: Sink | None) -> ModelRecord:
    spec = job.task_spec
    model = build_model(spec, task.data, job.seed).to(workers.device)
    # before any training: a pattern that matches nothing must not cost a training run
    method = job.method_spec
    prunable = list(find_layers(model, method.include, method.exclude).layers)
    _check_pass(model, task)
    torch.manual_seed(_worker_seed(job, workers.rank))
    recorder = Recorder(workers=workers, total_steps=spec.dense.steps, sink=sink)
    stretch = Stretch(
        first_step=0,
        num_steps=spec.dense.steps,
        max_grad_norm=method.max_grad_norm,
        evaluate_every=spec.evaluate_every,
        warmup_fraction=spec.dense.warmup_fraction,
        precision=spec.precision,
        keep_best=True,
    )
    groups = weight_groups(model, spec.dense.learning_rate, spec.dense.weight_decay)
    train(model, groups, task, workers, stretch, recorder)
    return _finish(job, task, workers, recorder, model, prunable, None, {})


def _compress(job: Job, task: TrainingTask, workers: Workers, sink: Sink | None) -> ModelRecord:
    assert job.dense is not None
    spec, method = job.task_spec, job.method_spec
    model = load_pretrained(job.dense).to(workers.device)
    teacher = None
    if method.distill > 0:
        teacher = load_pretrained(job.dense).to(workers.device).requires_grad_(False)
    pruner = Pruner(model, flop_l0(method), method.include, method.exclude, seed=job.seed)
    pruner.project()  # a density that not even rank 1 meets must not cost a training run either
    _check_pass(pruner.model, task)  # some models look into their layers, and find gates
    gated_steps = method.anneal_steps + method.hold_steps
    recorder = Recorder(workers=workers, total_steps=gated_steps + method.finetune_steps, sink=sink)
    common: dict[str, Any] = {
        "max_grad_norm": method.max_grad_norm,
        "evaluate_every": spec.evaluate_every,
        "precision": spec.precision,
        "teacher": teacher,
        "distill": method.distill,
        "temperature": method.distill_temperature,
    }
    gated = Stretch(first_step=0, num_steps=gated_steps, pruner=pruner, **common)
    groups = pruner.parameter_groups(method.learning_rate, spec.dense.weight_decay)
    train(pruner.model, groups, task, workers, gated, recorder)

    projection, measured = _project(pruner, task, workers)
    small = pruner.finish(projection)
    measured["validation_after"] = evaluate(small, task, workers, "validation")[task.metric.name]
    finetune = Stretch(
        first_step=gated_steps,
        num_steps=method.finetune_steps,
        keep_best=True,
        phase="finetune",
        **common,
    )
    groups = weight_groups(small, method.finetune_learning_rate, spec.dense.weight_decay)
    train(small, groups, task, workers, finetune, recorder)
    return _finish(
        job, task, workers, recorder, small, list(pruner.shapes), projection, measured, pruner
    )


def flop_l0(method: MethodSpec) -> FlopL0:
    """The library's form of the spec's method."""
    return FlopL0(
        density=method.density,
        anneal_steps=method.anneal_steps,
        hold_steps=method.hold_steps,
        penalty_lr=method.penalty_lr,
        gate_lr=method.gate_lr,
        gate=GateConfig(temperature=method.temperature, price_floor=method.price_floor),
    )


def _project(
    pruner: Pruner, task: TrainingTask, workers: Workers
) -> tuple[Projection, dict[str, float]]:
    """The projection, and what was true just before it."""
    expected = float(pruner.expected_density().detach())
    method = pruner.method
    # within a tenth of the way from 1 to the target, the gates have made most of the choice
    if expected > method.density + 0.1 * (1 - method.density):
        logger.warning(
            "the gates ended at density %.3f, target %.3f: the projection has to cut the rest; "
            "raise penalty_lr (%.3g), gate_lr or anneal_steps (%d)",
            expected,
            method.density,
            method.penalty_lr,
            method.anneal_steps,
        )
    before = evaluate(pruner.model, task, workers, "validation")[task.metric.name]
    projection = pruner.project()
    return projection, {
        "expected_density": expected,
        "realized_density": realized_density(projection.ranks, pruner.shapes),
        "validation_before": before,
    }


def _finish(
    job: Job,
    task: TrainingTask,
    workers: Workers,
    recorder: Recorder,
    model: nn.Module,
    prunable: list[str],
    projection: Projection | None,
    measured: dict[str, float],
    pruner: Pruner | None = None,
) -> ModelRecord:
    """Export, and from here on speak only of the exported files."""
    seconds = recorder.seconds
    with tempfile.TemporaryDirectory(prefix="lowrank-export-") as temporary:
        folder = Path(temporary)
        tokenizer = load_tokenizer(task.data.tokenizer_folder)
        if isinstance(job.task_spec, Classification):
            # whoever uses the model cuts long texts where training did
            tokenizer.model_max_length = task.max_length
        metadata = {"prunable": prunable, "key": job.key, "task": job.task["name"]}
        save_pretrained(model, folder, auto_class_of(job.task_spec), tokenizer, metadata)
        validation, test, size = measure_export(folder, task, workers)
        record = ModelRecord(
            key=job.key,
            task=job.task["name"],
            metric=task.metric,
            validation=validation,
            test=test,
            size=size,
            seed=job.seed,
            workers=workers.world,
            train_seconds=round(seconds, 3),
            curve=recorder.curve,
            export="",
            export_sha256=sha256_of(folder / WEIGHTS),
            config=job.method if projection is not None else {},
            ranks=_ranks(pruner, projection),
            projection={name: value for name, value in measured.items() if math.isfinite(value)},
        )
        record.save(folder / RECORD)
        recorder.flush()
        workers.report({"total_steps": recorder.total_steps}, folder)
    return record


def measure_export(
    folder: Path, task: TrainingTask, workers: Workers
) -> tuple[dict[str, float], dict[str, float], Size]:
    """Validation metrics, test metrics and size of an exported model, loaded from its files."""
    model = load_pretrained(folder).to(workers.device)
    validation = evaluate(model, task, workers, "validation")
    test = evaluate(model, task, workers, "test")
    for split, metrics in (("validation", validation), ("test", test)):
        value = metrics[task.metric.name]
        if not math.isfinite(value):
            raise TrialError(f"{split} {task.metric.name} of the trained model is {value}")
    return validation, test, recount(folder, model, task)


def recount(folder: Path, model: nn.Module, task: TrainingTask) -> Size:
    """Counts of an exported model: parameters and bytes from its file, MACs from its layers."""
    prunable = read_manifest(folder)["metadata"]["prunable"]
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in task.example_inputs(1, COUNT_LENGTH).items()}
    return Size(
        num_parameters=num_stored_parameters(folder),
        num_prunable=num_matrix_parameters(model, prunable),
        num_bytes=(folder / WEIGHTS).stat().st_size,
        macs_per_token=macs_per_token(model, inputs, inputs["input_ids"].numel()),
    )


def with_densities(record: ModelRecord, dense: ModelRecord) -> Densities:
    """The four densities, after checking that both count the same matrices."""
    densities = Densities.of(record.size, dense.size)
    target = record.target_density
    if densities.prunable > target:
        raise ModelError(
            f"realized density <= target must hold after projection, got {densities.prunable:.6f} "
            f"for {target} (trial {record.key})"
        )
    return densities


def _check_pass(model: nn.Module, task: TrainingTask) -> None:
    """One pass at the task's full length: otherwise the first long example ends the training."""
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in task.example_inputs(1, task.max_length).items()}
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    except Exception as error:  # models raise many kinds
        limit = getattr(model.config, "max_position_embeddings", None)
        known = f", its config has max_position_embeddings {limit}" if limit else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the model fails on {task.max_length} tokens (`context` or `max_length`){known}: "
            f"{reason}"
        ) from error


def _ranks(pruner: Pruner | None, projection: Projection | None) -> dict[str, dict[str, int]]:
    if pruner is None or projection is None:
        return {}
    return {
        name: {
            "rank": rank,
            "full_rank": pruner.shapes[name].full_rank,
            "in_features": pruner.shapes[name].in_features,
            "out_features": pruner.shapes[name].out_features,
            "dense": int(rank > pruner.shapes[name].break_even_rank),
        }
        for name, rank in projection.ranks.items()
    }


def _worker_seed(job: Job, rank: int) -> int:
    """Dropout differs between workers; everything shared is seeded by the job alone."""
    return int(content_hash([job.seed, job.key, "worker", rank], 12), 16)

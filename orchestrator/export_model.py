"""From a trained model to its exported files, and to what is known of them."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lowrank.contract import check_answers, load_reference, reference_of, save_reference
from lowrank.export import WEIGHTS, sha256_of
from lowrank.hf import load_pretrained, load_tokenizer, save_pretrained
from lowrank.sizes import COUNT_LENGTH
from lowrank.sizes import recount as count_export
from orchestrator.errors import ModelError, TrialError
from orchestrator.job import Job
from orchestrator.ladder import ladder_facts
from orchestrator.models import auto_class_of
from orchestrator.records import RECORD, Densities, ModelRecord, Size
from orchestrator.spec import MethodSpec
from orchestrator.stretch import Recorder
from orchestrator.tasks import TrainingTask
from orchestrator.training import evaluate
from orchestrator.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model after its last step."""

    model: nn.Module
    prunable: list[str]
    """Layers that the method may change, or may have changed."""
    projection: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, dict[str, int]] = field(default_factory=dict)
    rate_factor: float = 1.0
    shared_seconds: float = 0.0
    """Of the training behind it, what other models of its ladder are charged with."""
    worlds: list[tuple[int, int]] = field(default_factory=list)


def export_model(
    job: Job, task: TrainingTask, workers: Workers, recorder: Recorder, trained: Trained
) -> ModelRecord:
    """Export, and from here on speak only of the exported files."""
    seconds = recorder.seconds
    config = job.method if job.dense is not None else {}
    with tempfile.TemporaryDirectory(prefix="lowrank-export-") as temporary:
        folder = Path(temporary)
        tokenizer = load_tokenizer(task.data.tokenizer_folder)
        task.prepare_tokenizer(tokenizer)
        metadata = {
            "prunable": trained.prunable,
            "stores_zeros": job.dense is not None and _stores_zeros(job.method_spec),
            "key": job.key,
            "task": job.task["name"],
        }
        target = _exact_target(config)
        # a small model from scratch has its own config, which does not tell what was dense
        if target is not None and config["kind"] != "from-scratch":
            metadata["target_density"] = target
        reference = reference_of(trained.model, tokenizer)
        save_pretrained(trained.model, folder, auto_class_of(job.task_spec), tokenizer, metadata)
        save_reference(reference, folder)
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
            train_seconds=round(seconds - trained.shared_seconds, 3),
            curve=recorder.curve,
            export="",
            export_sha256=sha256_of(folder / WEIGHTS),
            config=config,
            ranks=trained.ranks,
            projection={k: v for k, v in trained.projection.items() if math.isfinite(v)},
            rate_factor=trained.rate_factor,
            ladder=ladder_facts(job.ladder),
            worlds=trained.worlds if len(trained.worlds) > 1 else [],
        )
        record.save(folder / RECORD)
        recorder.flush()
        workers.report({"total_steps": recorder.total_steps}, folder)
    return record


def measure_export(
    folder: Path, task: TrainingTask, workers: Workers
) -> tuple[dict[str, float], dict[str, float], Size]:
    """Validation metrics, test metrics and size of an exported model, loaded from its files.

    Raises:
        ExportError: It does not answer like the model that was exported.
    """
    model = load_pretrained(folder)
    check_answers(model, load_reference(folder), str(folder))
    model = model.to(workers.device)
    validation = evaluate(model, task, workers, "validation")
    test = evaluate(model, task, workers, "test")
    for split, metrics in (("validation", validation), ("test", test)):
        value = metrics[task.metric.name]
        if not math.isfinite(value):
            raise TrialError(f"{split} {task.metric.name} of the trained model is {value}")
    return validation, test, recount(folder, model, task)


def recount(folder: Path, model: nn.Module, task: TrainingTask) -> Size:
    """Counts of an exported model, on an example of the task."""
    device = next(model.parameters()).device
    inputs = {k: v.to(device) for k, v in task.example_inputs(1, COUNT_LENGTH).items()}
    return count_export(folder, model, inputs)


def _exact_target(config: dict[str, Any]) -> float | None:
    """The density that a trial's export must not exceed, by the fields of its method.

    None for `faithful`, which ends where its gates did, as published, and for other budgets than
    parameters, which were checked by the projection.
    """
    exact = config.get("kind") != "faithful" and config.get("budget") == "parameters"
    return config["density"] if exact else None


def _stores_zeros(method: MethodSpec) -> bool:
    """Whether what was removed is still in the file, as zeros among other weights."""
    return method.kind == "agp" and method.granularity in ("weight", "block")


def with_densities(record: ModelRecord, dense: ModelRecord) -> Densities:
    """The four densities, after checking the one that was asked for."""
    densities = Densities.of(record.size, dense.size)
    target = _exact_target(record.config)
    if target is not None and densities.prunable > target:
        raise ModelError(
            f"realized density <= target must hold after projection, got {densities.prunable:.6f} "
            f"for {target} (trial {record.key})"
        )
    return densities

"""One model, no search: the job of a trial in this very process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.data.prepare import describe, prepare_data
from orchestrator.errors import storage_error
from orchestrator.export_model import with_densities
from orchestrator.job import Job
from orchestrator.layout import Layout
from orchestrator.models import resolve_pretrained
from orchestrator.progress import Progress
from orchestrator.records import RECORD, ModelRecord
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.train_loop import run_job
from orchestrator.trial_keys import dense_key, trial_key
from orchestrator.workers import LocalWorkers


def compress_one(
    spec: CampaignSpec,
    task: AnyTask,
    density: float | None,
    output: Path,
    say: Callable[[str], None],
) -> ModelRecord:
    """Train or load the dense model of a task, prune it to one density, export it.

    Args:
        density: Overrides the method's.
        output: Receives `dense/` and `compressed/`.
    """
    progress = Progress(say=say, total_models=2)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(output, error) from error
    cache = Layout.of(spec.storage, spec.name).cache
    data = prepare_data(task, cache, resolve_pretrained(task.model))
    progress.line(f"{task.name}: {describe(data)}")
    method = spec.method_of(task, **({} if density is None else {"density": density}))
    common: dict[str, Any] = {
        "task": task.model_dump(mode="json"),
        "method": method.model_dump(),
        "data": str(data.folder),
        "seed": spec.seed,
    }

    def train(key: str, name: str, dense: Path | None) -> ModelRecord:
        folder = output / name

        def on_report(metrics: dict[str, Any], checkpoint: Path | None) -> None:
            progress.step(name, metrics)
            if checkpoint is not None:
                shutil.copytree(checkpoint, folder)

        job = Job(key=key, dense=None if dense is None else str(dense), **common)
        record = run_job(job, LocalWorkers(on_report))
        progress.done(name, f"finished, validation {record.quality:.4f}")
        record = replace(record, export=str(folder))
        record.save(folder / RECORD)
        return record

    dense = train(dense_key(spec, task, data.content_hash), "dense", None)
    key = trial_key(spec, task, method, data.content_hash)
    record = train(key, "compressed", Path(dense.export))
    record = replace(record, densities=with_densities(record, dense))
    record.save(Path(record.export) / RECORD)
    return record

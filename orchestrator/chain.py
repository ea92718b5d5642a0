"""A ladder without a trunk: each density goes on from the finished model of the density above."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lowrank.folded import multiply_out_
from lowrank.hf import load_pretrained
from lowrank.methods import Adaptive
from orchestrator.bucket.places import borrowed
from orchestrator.compression import make_pruner
from orchestrator.descent import Parts, ladder_of_job, to_small
from orchestrator.export_model import Trained
from orchestrator.job import Job
from orchestrator.ladder import Ladder, link_steps
from orchestrator.methods import make_method
from orchestrator.model_check import check_pass
from orchestrator.records import RECORD, ModelRecord
from orchestrator.resume import Keeper
from orchestrator.stretch import Recorder
from orchestrator.tasks import TrainingTask
from orchestrator.workers import Workers


def link(
    job: Job, task: TrainingTask, workers: Workers, recorder: Recorder, keeper: Keeper
) -> Trained:
    """One model of a chain: the one above multiplied out, pruned as if it were dense, recovered.

    Its densities are against the dense reference all the same, which has the same shapes, and which
    stays the teacher.

    Raises:
        ExportError: The model above is damaged.
        StorageError: It is not in the bucket.
        LowRankError: No layer matches the patterns, or the density is out of reach.
        DivergedError: Training diverged.
    """
    assert job.dense is not None
    ladder = ladder_of_job(job)
    assert ladder.rung is not None
    model, seconds = load_pretrained(job.dense), 0.0
    if ladder.parent is not None:
        with borrowed(ladder.parent) as home:
            multiply_out_(model, load_pretrained(home))
            above = ModelRecord.load(Path(home) / RECORD)
        seconds = max(point.seconds for point in above.curve)
        recorder.curve[:] = above.curve
        recorder.before = seconds
    method, parts = _course(job, ladder)
    pruner = make_pruner(job, method, model.to(workers.device), task, workers)
    pruner.project()  # a density that not even the floors meet must not cost a training run either
    check_pass(pruner.model, task)
    keeper.restructure(pruner)
    trained = to_small(job, pruner, task, workers, recorder, keeper, parts)
    return replace(trained, shared_seconds=seconds)


def _course(job: Job, ladder: Ladder) -> tuple[Adaptive, Parts]:
    """The method and the steps of a chain's model."""
    assert ladder.rung is not None
    before, steps = ladder.part(ladder.rung)
    gated, recovery = link_steps(job.method_spec, steps)
    method = make_method(job.method_spec)
    assert isinstance(method, Adaptive)
    parts = Parts(
        begin=before,
        gated=gated,
        recovery=recovery,
        warmup_fraction=0.05,  # as a training of its own
    )
    return replace(method, gated_steps=gated), parts

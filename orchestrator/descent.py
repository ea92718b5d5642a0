"""The training of a ladder's jobs: its trunk, and a branch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lowrank.hf import load_pretrained
from lowrank.methods import Adaptive, Method
from lowrank.nested import compacted_copy, project_within
from lowrank.pruner import Pruner
from lowrank.shrinking import of_the_start
from orchestrator.compression import (
    choose,
    make_distillation,
    make_pruner,
    make_stretch,
    recover,
    train_gated,
)
from orchestrator.export_model import Trained
from orchestrator.job import Job
from orchestrator.ladder import Ladder, Starts
from orchestrator.methods import make_method
from orchestrator.model_check import check_pass
from orchestrator.records import CurvePoint
from orchestrator.resume import Keeper
from orchestrator.snapshot import Snapshot
from orchestrator.spec import content_hash
from orchestrator.stretch import Recorder, Stretch
from orchestrator.tasks import Distillation, TrainingTask
from orchestrator.training import evaluate
from orchestrator.workers import Workers

PART = "-rung"
"""Before the number of a rung in the name of the trunk's stretch that leads to it."""


def descend(
    job: Job, task: TrainingTask, workers: Workers, recorder: Recorder, keeper: Keeper
) -> None:
    """The trunk: gated training through all densities, a start kept at each.

    Raises:
        LowRankError: No layer matches the patterns, or a density is out of reach.
        ModelError: The model does not work with the inserted layers.
        DivergedError: Training diverged.
        StorageError: A start cannot be written.
    """
    ladder = ladder_of_job(job)
    starts = Starts(ladder.starts, workers)
    begin = starts.reached(ladder)
    if begin == len(ladder.densities):
        return
    pruner = _new_pruner(job, task, workers)
    for rung in range(len(ladder.densities)):
        # one that cannot be met must not cost a training run
        _aim_trunk(pruner, ladder, rung)
        pruner.project()
    check_pass(pruner.model, task)
    distillation = make_distillation(job, workers)
    goes_on = _found_rung(keeper) == begin
    if goes_on:
        _aim_trunk(pruner, ladder, begin)
        keeper.restructure(pruner)
    else:
        keeper.pass_over()
    if begin and not goes_on:
        _put_start(starts.load(ladder, begin - 1), pruner, recorder, keeper)
    keeper.pruner = pruner
    preview = _Preview(pruner, task, workers, keeper)
    for rung in range(begin, len(ladder.densities)):
        if rung > begin or not goes_on:
            _aim_trunk(pruner, ladder, rung)
        _seed(job, workers, rung)
        stretch = _descent(job, ladder, rung, pruner, preview, distillation)
        train_gated(job, pruner, task, workers, stretch, recorder, keeper)
        starts.save(ladder, rung, _start(pruner, recorder, keeper, rung))


def branch(
    job: Job, task: TrainingTask, workers: Workers, recorder: Recorder, keeper: Keeper
) -> Trained:
    """From the trunk's state at a density to the small model of that density.

    Raises:
        SnapshotError: The start is missing or damaged.
        DivergedError: Training diverged.
    """
    ladder = ladder_of_job(job)
    assert ladder.rung is not None
    start = Starts(ladder.starts, workers).load(ladder, ladder.rung)
    pruner = _new_pruner(job, task, workers)
    density, harden = ladder.densities[ladder.rung], harden_steps(job, ladder)
    if keeper.phase is None:
        _put_start(start, pruner, recorder, keeper)
        keeper.facts = {}
    pruner.aim(density, harden, reached=density)
    keeper.restructure(pruner)
    parts = Parts(
        begin=ladder.rungs[ladder.rung],
        gated=harden,
        recovery=ladder.branch_steps - harden,
        warmup_fraction=0.0,  # the trunk's rate goes on
    )
    trained = to_small(job, pruner, task, workers, recorder, keeper, parts)
    return replace(trained, shared_seconds=start.facts["shared_seconds"])


# --------------------------------------------------------------------------- what ends as a model


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Steps of a job's own training; one schedule of the rate goes over them."""

    begin: int
    """Global step of the first."""
    gated: int
    """Until the projection."""
    recovery: int
    warmup_fraction: float


def to_small(
    job: Job,
    pruner: Pruner,
    task: TrainingTask,
    workers: Workers,
    recorder: Recorder,
    keeper: Keeper,
    parts: Parts,
) -> Trained:
    """Gated steps, projection and recovery, as far as they are to come."""
    distillation = make_distillation(job, workers)
    common: dict[str, Any] = {
        "schedule_from": parts.begin,
        "schedule_steps": parts.gated + parts.recovery,
        "warmup_fraction": parts.warmup_fraction,
    }
    if not pruner.finished:
        gated = make_stretch(job, distillation, parts.begin, parts.gated, pruner=pruner, **common)
        keeper.facts = choose(job, pruner, task, workers, gated, recorder, keeper)
    finetune = make_stretch(
        job,
        distillation,
        parts.begin + parts.gated,
        parts.recovery,
        keep_best=True,
        phase="finetune",
        **common,
    )
    return recover(job, pruner, task, workers, finetune, recorder, keeper)


def ladder_of_job(job: Job) -> Ladder:
    assert job.ladder is not None
    return Ladder(**job.ladder)


def harden_steps(job: Job, ladder: Ladder) -> int:
    """Of a model's steps at its density, those before its projection."""
    steps = ladder.branch_steps
    return min(steps, max(1, round((1 - job.method_spec.anneal_fraction) * steps)))


# --------------------------------------------------------------------------- parts


def _new_pruner(job: Job, task: TrainingTask, workers: Workers) -> Pruner:
    """As the trunk began, for whatever job of the ladder."""
    assert job.dense is not None
    model = load_pretrained(job.dense).to(workers.device)
    return make_pruner(job, ladder_method(job, ladder_of_job(job)), model, task, workers)


def ladder_method(job: Job, ladder: Ladder) -> Method:
    """The library's method of a ladder's first density, which decides how many components there
    are, and by its steps how fast scores move."""
    method = make_method(job.method_spec)
    assert isinstance(method, Adaptive)
    return replace(method, density=ladder.densities[0], gated_steps=ladder.rungs[0])


def _aim_trunk(pruner: Pruner, ladder: Ladder, rung: int) -> None:
    reached = ladder.densities[rung - 1] if rung else None
    pruner.aim(ladder.densities[rung], ladder.part(rung)[1], reached)


def _found_rung(keeper: Keeper) -> int | None:
    """Of the state that an earlier attempt left."""
    phase = keeper.phase
    return None if phase is None else int(phase.rpartition(PART)[2])


def _seed(job: Job, workers: Workers, rung: int) -> None:
    """Dropout of each part is a function of its number, not of where an attempt began."""
    torch.manual_seed(int(content_hash([job.worker_seed(workers.rank), rung], 12), 16))


def _descent(
    job: Job,
    ladder: Ladder,
    rung: int,
    pruner: Pruner,
    preview: _Preview,
    distillation: Distillation | None,
) -> Stretch:
    begin, steps = ladder.part(rung)
    return make_stretch(
        job,
        distillation,
        begin,
        steps,
        pruner=pruner,
        part=f"{PART}{rung}",
        preview=preview,
        schedule_steps=job.method_spec.steps,
        decays=False,
    )


def _start(pruner: Pruner, recorder: Recorder, keeper: Keeper, rung: int) -> Snapshot:
    parts = {"model.": pruner.model.state_dict(), "pruner.": pruner.state_dict()}
    shared, seconds = keeper.facts.get("rung_seconds", []), recorder.seconds
    keeper.facts = keeper.facts | {"rung_seconds": [*shared, seconds]}
    return Snapshot(
        # copies, for tied weights are one tensor under two names
        tensors={
            prefix + name: tensor.detach().cpu().clone().contiguous()
            for prefix, part in parts.items()
            for name, tensor in part.items()
        },
        facts={
            "curve": [asdict(point) for point in recorder.curve],
            "seconds": seconds,
            "shared_seconds": shared[rung - 1] if rung else 0.0,
            "job": keeper.facts,
            "rate_factor": keeper.rate_factor,
        },
    )


def _put_start(start: Snapshot, pruner: Pruner, recorder: Recorder, keeper: Keeper) -> None:
    """Go on from a trunk's state; the pruner is aimed afterwards, by scores that are there."""
    pruner.load_state_dict(start.part("pruner."))
    pruner.model.load_state_dict(start.part("model."))
    recorder.curve[:] = [CurvePoint(**point) for point in start.facts["curve"]]
    recorder.before = start.facts["seconds"]
    keeper.facts = dict(start.facts["job"])
    keeper.rate_factor = min(keeper.rate_factor, float(start.facts["rate_factor"]))


class _Preview:
    """The front without further training: at each validation of the trunk the quality of the model
    that a projection onto the density of that moment would leave.

    These projections are nested. In `keeper.facts` is for every component of the start the number
    of previews that it has stayed in, which is the order in which the gates closed.
    """

    def __init__(
        self, pruner: Pruner, task: TrainingTask, workers: Workers, keeper: Keeper
    ) -> None:
        self._pruner, self._task, self._workers = pruner, task, workers
        self._keeper = keeper

    def __call__(self) -> dict[str, float]:
        pruner, control = self._pruner, self._pruner.control
        stayed = self._stayed()
        most = max(int(counts.max()) for counts in stayed.values())
        within = {name: counts[pruner.present[name]] == most for name, counts in stayed.items()}
        # of a layer whose last components have left the model, those that are there count
        within = {n: mask if mask.any() else torch.ones_like(mask) for n, mask in within.items()}
        found = project_within(
            control.scores(), control.costs, pruner.target, control.floors, within
        )
        for name, keep in found.keep.items():
            stayed[name][of_the_start(keep, pruner.present[name])] += 1
        facts = {"stayed": {name: counts.tolist() for name, counts in stayed.items()}}
        self._keeper.facts = self._keeper.facts | facts
        small = compacted_copy(pruner, found)
        value = evaluate(small, self._task, self._workers, "validation")[self._task.metric.name]
        figures = {"projected": value, "projected_density": found.density}
        return {name: each for name, each in figures.items() if math.isfinite(each)}

    def _stayed(self) -> dict[str, torch.Tensor]:
        known = self._keeper.facts.get("stayed")
        if known is None:
            present = self._pruner.present.items()
            return {name: torch.zeros(len(mask), dtype=torch.long) for name, mask in present}
        return {name: torch.tensor(counts) for name, counts in known.items()}

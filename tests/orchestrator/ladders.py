"""Jobs of a small ladder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orchestrator.data.prepare import PreparedData
from orchestrator.job import Job
from orchestrator.ladder import Ladder, plan_steps
from orchestrator.records import ModelRecord
from orchestrator.spec_ladder import LadderSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.train_loop import run_trunk
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import make_job, method, train_to

DENSITIES = [0.6, 0.4, 0.25]
SPEC = LadderSpec(by="trunk", first=0.5, descent=0.5, recovery=0.5)
CHAIN = LadderSpec(first=1, descent=1)
STEPS = 24
"""Of a method: the trunk has 36, each branch 12 of which 3 harden."""


def ladder_jobs(
    parent: tuple[AnyTask, PreparedData, ModelRecord], folder: Path, **fields: Any
) -> tuple[Job, list[Job]]:
    """The trunk and its branches, densest first; states in `folder`.

    Args:
        parent: Task, its data and the dense reference.
        folder: Of the ladder's own.
        fields: Of the method.
    """
    task, data, dense = parent
    how = {"kind": "adaptive", "steps": STEPS, "anneal_fraction": 0.75, "distill": 0.5} | fields
    how = {k: v for k, v in how.items() if k != "gated_fraction"}
    rungs, branch_steps = plan_steps(SPEC, method(**how), DENSITIES)
    ladder = Ladder(
        trunk="trunk",
        densities=DENSITIES,
        rungs=rungs,
        branch_steps=branch_steps,
        starts=str(folder / "starts"),
    )

    def job(rung: int | None) -> Job:
        values = asdict(ladder) | {"rung": rung}
        key = "trunk" if rung is None else f"branch{rung}"
        made = method(**how, density=DENSITIES[-1 if rung is None else rung])
        snapshots = str(folder / key)
        return make_job(task, data, made, dense.export, key=key, ladder=values, snapshots=snapshots)

    return job(None), [job(rung) for rung in range(len(DENSITIES))]


def chain_jobs(
    parent: tuple[AnyTask, PreparedData, ModelRecord], folder: Path, models: Path, **fields: Any
) -> list[Job]:
    """The same densities without a trunk; models will be in `models`."""
    _, branches = ladder_jobs(parent, folder, **fields)
    made = []
    for rung, job in enumerate(branches):
        assert job.ladder is not None
        rungs, branch_steps = plan_steps(CHAIN, job.method_spec, DENSITIES)
        above = str(models / f"branch{rung - 1}") if rung else None
        own = {"rungs": rungs, "branch_steps": branch_steps, "chain": True, "parent": above}
        made.append(replace(job, ladder=job.ladder | own))
    return made


def run_ladder(trunk: Job, branches: list[Job], folder: Path) -> list[ModelRecord]:
    """All of it in this process, models in `folder`."""
    run_trunk(trunk, LocalWorkers())
    return [train_to(folder / job.key, job) for job in branches]

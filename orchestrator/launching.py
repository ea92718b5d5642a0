"""The job of a model and where it runs, from the plan of a trial; its MLflow run is there then."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from orchestrator.campaign_state import Site, TaskState
from orchestrator.ladder import Ladder, ladder_of
from orchestrator.launch import Launch
from orchestrator.method_search import TrialPlan
from orchestrator.spec import content_hash
from orchestrator.tasks import make_task
from orchestrator.trial_keys import rung_key


def launch_of(
    site: Site, state: TaskState, key: str, plan: TrialPlan | None, is_trunk: bool = False
) -> Launch:
    """A job with its MLflow run; without a plan that of the dense reference.

    Args:
        site: Of the campaign.
        state: Of the task.
        key: Of the model, or the trunk.
        plan: Any of its branches, for a trunk.
        is_trunk: Of the plan's ladder.
    """
    spec, task, dense = site.spec, state.task, state.dense
    method = (plan.method if plan else spec.method_of(task)).model_dump()
    seed = plan.seed if plan else spec.seed
    params = {
        "task": task.name,
        "seed": seed,
        "workers": spec.resources_of(task).workers_in_words,
        "data_hash": state.data.content_hash,
        "dense": task.dense.model_dump(),
    }
    tags = {
        "kind": "trunk" if is_trunk else "trial" if plan else "dense",
        "spec_hash": spec.digest(),
        **_versions(),
    }
    # a dense reference outlives a change of method, and MLflow refuses changed parameters
    if plan:
        params |= _grouping(plan) | {"method": method}
        # as tags too: MLflow's pages group and filter by either
        tags |= {name: str(value) for name, value in _grouping(plan).items()}
    source = plan.source if plan else None
    if source is not None:
        tags |= {"warm_start.campaign": source.campaign, "warm_start.run": source.run_id}
    ladder = None
    if plan and plan.trunk:
        ladder = _ladder_of_plan(site, plan, is_trunk)
        params |= {"ladder": _ladder_params(ladder)}
    called = plan.name if plan else "dense"
    name = f"{task.name} {trunk_name(called) if is_trunk else called}"
    run_id = site.tracking.model_run(key, state.run_id, name, params, tags)
    job = {
        "key": key,
        "task": task.model_dump(mode="json"),
        "method": method,
        "data": site.layout.mirror.place(state.data.folder),
        "seed": seed,
        "dense": dense.export if dense else None,
        "snapshots": site.layout.mirror.place(site.layout.snapshots(key)),
        "ladder": asdict(ladder) if ladder else None,
        "num_snapshots": spec.retention.snapshots,
    }
    return Launch(
        job=job,
        storage=spec.storage,
        campaign=spec.name,
        resources=spec.resources_of(task).model_dump(),
        tracking_uri=site.tracking.uri,
        run_id=run_id,
        metric=make_task(task, state.data, 0).metric.name,
        dense_record=site.layout.mirror.place(site.layout.record(dense.key)) if dense else None,
        method_name=plan.method_name if plan else "",
        warm_start=f"{source.campaign}/{source.run_id}" if source else "",
    )


def _ladder_of_plan(site: Site, plan: TrialPlan, is_trunk: bool) -> Ladder:
    """Where a plan's job stands, or that of its trunk."""
    assert plan.trunk is not None
    search, density, place = site.spec.search, plan.method.density, site.layout.mirror.place
    rung = search.descending.index(density)
    above = None
    if rung:
        above = place(site.layout.model(rung_key(plan.trunk, search.descending[rung - 1])))
    starts = place(site.layout.starts(plan.trunk))
    return ladder_of(search, plan.method, plan.trunk, starts, None if is_trunk else rung, above)


def trunk_name(branch: str) -> str:
    """For people, from the name of a branch: its density is that of all."""
    return " ".join(["trunk", *(w for w in branch.split() if not w.startswith("density="))])


def _ladder_params(ladder: Ladder) -> dict[str, Any]:
    """Of an MLflow run."""
    return {
        "trunk": ladder.trunk,
        "densities": ladder.densities,
        "steps": ladder.num_steps,
        "branch_steps": ladder.branch_steps,
    }


def _grouping(plan: TrialPlan) -> dict[str, Any]:
    """By what the runs of a task are told apart; `config` is common to a draw and its repeats."""
    return {
        "method_name": plan.method_name,
        "density": plan.method.density,
        "seed": plan.seed,
        "repeat": plan.repeat,
        "config": content_hash(plan.method.deciding(), 8),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("lowrank-orchestrator", "torch", "transformers", "ray", "mlflow")
    return {f"version.{name}": version(name) for name in names}

"""How the stage that trains launches ladders: together with their branches, or these apart."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from orchestrator.campaign_records import FailedTrial
from orchestrator.campaign_state import Site, TaskState
from orchestrator.ladder import Ladder, Starts
from orchestrator.ladder_trial import record_trunk, trunk_failed
from orchestrator.launch import Launch
from orchestrator.launching import launch_of, trunk_name
from orchestrator.method_search import TrialPlan
from orchestrator.records import ModelRecord
from orchestrator.workers import LocalWorkers


def run_ladders(
    site: Site,
    state: TaskState,
    ladders: Mapping[str, list[TrialPlan]],
    launches: Mapping[str, Launch],
) -> Generator[dict[str, Launch], None, None]:
    """The trunks that are needed, and the branches that have no model yet, in rounds: each is over
    before the next is asked for.

    Args:
        site: Of the campaign.
        state: Of the task; failures are added to it.
        ladders: Key of a trunk -> the plans of its branches that are missing.
        launches: Of these branches, by their names.
    """
    search = site.spec.search
    assert search.ladder is not None
    by_key = {launch.key: (name, launch) for name, launch in launches.items()}
    if search.ladder.by == "chain":
        chains = _chains(ladders, by_key)
        for key in models_above(chains.values()):
            # MLflow alone may have its weights
            site.house.bring(ModelRecord.load(site.layout.record(key)))
        yield chains
        return
    trunks: dict[str, Launch] = {}
    for key, plans in ladders.items():
        branches = [asdict(by_key[plan.key][1]) for plan in plans]
        trunk = launch_of(site, state, key, plans[0], is_trunk=True)
        name = f"{state.task.name} {trunk_name(plans[0].name)}"
        trunks[name] = replace(trunk, then=branches if search.ladder.run == "together" else [])
    yield trunks
    lost = _without(state, {trunk.key for trunk in trunks.values()})
    if search.ladder.run == "apart":
        yield from _run_apart(site, state, ladders, by_key, lost)
    for trunk in trunks.values():
        _conclude(site, trunk, [plan.key for plan in ladders[trunk.key]], lost)


def _chains(
    ladders: Mapping[str, list[TrialPlan]], by_key: Mapping[str, tuple[str, Launch]]
) -> dict[str, Launch]:
    """Per ladder one trial: the first model that is missing, then those below it."""
    found: dict[str, Launch] = {}
    for plans in ladders.values():
        (name, first), *rest = (by_key[plan.key] for plan in plans)
        found[name] = replace(first, then=[asdict(launch) for _, launch in rest])
    return found


def models_above(launches: Iterable[Launch]) -> set[str]:
    """Keys of finished models that the first models of chains go on from."""
    above = (Ladder(**each.job["ladder"]).parent for each in launches if each.job["ladder"])
    return {Path(parent).name for parent in above if parent is not None}


def lacking(
    site: Site, plans: Sequence[TrialPlan], found: Mapping[str, ModelRecord | None]
) -> set[str]:
    """Keys of models that must be trained again: one below them in their chain is missing, and
    their weights were given up.

    Args:
        site: Of the campaign.
        plans: From high to low densities.
        found: Key of a plan -> its finished model, if there is one.
    """
    again: set[str] = set()
    if site.spec.search.ladder is None or site.spec.search.ladder.by != "chain":
        return again
    asked: set[str] = set()
    for plan in reversed(plans):
        assert plan.trunk is not None
        key, trunk = plan.key, plan.trunk
        is_missing = found[key] is None or (trunk in asked and site.house.is_gone(key))
        if not is_missing:
            asked.discard(trunk)
            continue
        asked.add(trunk)
        if found[key] is not None:
            again.add(key)
    return again


def _run_apart(
    site: Site,
    state: TaskState,
    ladders: Mapping[str, list[TrialPlan]],
    by_key: Mapping[str, tuple[str, Launch]],
    lost: Mapping[str, FailedTrial],
) -> Generator[dict[str, Launch], None, None]:
    ready: dict[str, Launch] = {}
    for key, plans in ladders.items():
        for name, launch in (by_key[plan.key] for plan in plans):
            if key not in lost:
                ready[name] = launch
                continue
            reason = trunk_failed(lost[key].reason)
            site.tracking.writer(launch.run_id).end("FAILED", reason)
            site.progress.done(name, f"FAILED, {reason}")
            state.failed.append(replace(lost[key], key=launch.key, reason=reason))
    if ready:
        yield ready


def _without(state: TaskState, keys: set[str]) -> dict[str, FailedTrial]:
    """Take trunks out of the failed: those are models, and a trunk is none."""
    lost = {failed.key: failed for failed in state.failed if failed.key in keys}
    state.failed[:] = [failed for failed in state.failed if failed.key not in keys]
    return lost


def _conclude(
    site: Site,
    trunk: Launch,
    branches: list[str],
    lost: Mapping[str, FailedTrial],
) -> None:
    """What the trial could not write, and what nobody needs any more."""
    tracking, layout = site.tracking, site.layout
    if trunk.key not in lost and not tracking.finished(trunk.key):
        record_trunk(trunk, tracking.writer(trunk.run_id))
    # their records may have been written on other machines
    fetch = layout.mirror.fetch_growing
    if all(fetch(layout.model(key)) and layout.record(key).exists() for key in branches):
        Starts(Ladder(**trunk.job["ladder"]).starts, LocalWorkers()).clear()

"""How the stage that trains deals with draws that were stopped early: whom rungs judge, and what is
left to do about one that was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from orchestrator.bucket.kept import states_at
from orchestrator.campaign_records import StoppedTrial
from orchestrator.campaign_state import Site, TaskState
from orchestrator.launch import Launch
from orchestrator.launching import launch_of
from orchestrator.method_search import TrialPlan
from orchestrator.recording import record_stop
from orchestrator.stopping.notes import Notes
from orchestrator.stopping.rungs import Rungs


def rungs_of(site: Site, state: TaskState) -> Rungs | None:
    """Of a task whose dense reference is there; None if nobody is stopped."""
    stopping = site.spec.search.stopping
    if stopping is None or state.dense is None:
        return None
    notes = Notes(site.layout, state.task.name)
    return Rungs(stopping, state.dense.metric.higher_is_better, notes)


def is_stopped(site: Site, state: TaskState, key: str) -> bool:
    """Whether a trial was stopped and has no model: one that hears too late ends with one."""
    if state.rungs is None or key not in state.rungs.stopped:
        return False
    return not site.layout.record(key).exists()


def settle_stop(
    site: Site, state: TaskState, plan: TrialPlan, launch: Launch | None = None
) -> StoppedTrial:
    """Count a trial as stopped; what its own process could not write or remove is done now.

    Args:
        site: Of the campaign.
        state: Of the task; gets it.
        plan: Of the trial.
        launch: Of it, if it was launched in this round.
    """
    rungs, layout = state.rungs, site.layout
    assert rungs is not None
    note = rungs.note(plan.key)
    assert note.stopped is not None
    step = note.stopped.step if note.ended_at is None else note.ended_at
    if not note.recorded:
        launch = launch or launch_of(site, state, plan.key, plan)
        writer = site.tracking.writer(launch.run_id)
        why = note.stopped.reason
        record_stop(launch, rung=note.stopped.rung, reason=why, step=step, writer=writer)
        states_at(layout.mirror.place(layout.snapshots(plan.key))).clear()
        shutil.rmtree(layout.train / plan.key, ignore_errors=True)
        rungs.ended(plan.key, step, recorded=True)
    found = StoppedTrial(
        key=plan.key,
        task=state.task.name,
        config=plan.method.model_dump(mode="json"),
        method_name=plan.method_name,
        seed=plan.seed,
        rung=note.stopped.rung,
        step=step,
        total_steps=note.total_steps,
        reason=note.stopped.reason,
    )
    state.stopped.append(found)
    return found


def without(plans: Iterable[TrialPlan], *gone: Iterable[str]) -> list[TrialPlan]:
    """The plans whose keys are in none of the others."""
    known = {key for keys in gone for key in keys}
    return [plan for plan in plans if plan.key not in known]

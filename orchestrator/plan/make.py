"""Makes a plan: counts, probes or reads a profile, and sees whether it fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.data.prepare import PreparedData, prepare_data
from orchestrator.layout import Layout
from orchestrator.models import build_model, resolve_pretrained
from orchestrator.plan import disk, unused
from orchestrator.plan.figures import total
from orchestrator.plan.fit import DoesNotFit, Node, TaskFit, machines
from orchestrator.plan.hours import END, MEASURING, round_hours, task_hours
from orchestrator.plan.nodes import memory_bytes
from orchestrator.plan.overhead import Overhead, scaled
from orchestrator.plan.plan import (
    COUNTED,
    GIVEN,
    PROBED,
    VERSION,
    Plan,
    TaskPlan,
    layout_of,
    plan_path,
)
from orchestrator.plan.probe import probe_task
from orchestrator.plan.profile import (
    VERSION as PROFILE_VERSION,
)
from orchestrator.plan.profile import (
    Profile,
    TaskProfile,
    check_profile,
    describe_task,
)
from orchestrator.plan.refusals import check_disk, check_room
from orchestrator.plan.shapes import shapes_profile
from orchestrator.plan.sharing import passing_bytes, shared_makespan
from orchestrator.plan.work import TaskWork, task_work
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.tasks import make_task

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

STEP_SECONDS = 8.0
"""Of training steps of each model that is probed: some hundred of a small model, sixteen of one
that takes half a second."""
RAY_BYTES = 230 * 10**6
"""Of resident memory that a worker of Ray has beside what a probe's process has: Ray and MLflow,
imported and with an open store, 228 MB (Ray 2.60.0, MLflow 3.17.2)."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Where a plan's costs are to come from."""

    profile: Profile | None = None
    """Of another machine, or of an earlier probe; then nothing is probed."""
    probe: bool = True
    """False counts only: bytes, and no hours."""
    step_seconds: float = STEP_SECONDS
    with_ray: bool = False
    """Run a campaign of a few steps to measure what Ray and MLflow cost here."""


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A task whose data and model are there."""

    task: AnyTask
    work: TaskWork
    data: PreparedData
    profile: TaskProfile


def make_plan(
    spec: CampaignSpec,
    nodes: Sequence[Node],
    say: Say,
    asked: Asked | None = None,
) -> tuple[Plan, Profile | None]:
    """Count, probe, and see whether it fits.

    Args:
        spec: The campaign.
        nodes: The machines that it is to run on.
        say: Hears of the progress.
        asked: By default a probe of this machine.

    Returns:
        The plan, and the profile that it is made of.

    Raises:
        DoesNotFit: It could never run there; with what would fit.
        ProfileError: The profile is of something else.
        CampaignError: Data, model, or a short training.
    """
    asked = asked or Asked()
    works = {task.name: task_work(spec, task) for task in spec.tasks}
    check_room(spec, works, nodes)
    layout = layout_of(spec)
    ready, starts = [], []
    for task in spec.tasks:
        found, start_s = _ready(spec, task, works[task.name], layout, say, asked)
        ready.append(found)
        starts.append(start_s)
    profile = asked.profile
    if profile is None and asked.probe:
        overhead = scaled(max(starts))
        if asked.with_ray:
            from orchestrator.plan.rehearsal import rehearse

            first = ready[0]
            overhead = rehearse(spec, first.task, first.data, first.profile, max(starts), say)
        tasks = {each.task.name: each.profile for each in ready}
        profile = Profile(
            version=PROFILE_VERSION, machine=_machine(), overhead=overhead, tasks=tasks
        )
    source = GIVEN if asked.profile else PROBED if asked.probe else COUNTED
    plan = _put_together(spec, ready, nodes, source, profile)
    check_disk(layout, plan)
    return plan, profile


def keep_counts(
    spec: CampaignSpec, data: Mapping[str, PreparedData], available: Mapping[str, float]
) -> None:
    """Leave a plan of what can be counted with a campaign that has none, for a comparison after it.

    Args:
        spec: The campaign.
        data: Prepared, by task.
        available: Resources of the cluster.
    """
    layout = layout_of(spec)
    if plan_path(layout).exists():
        return
    nodes = [{name: available[name] for name in ("CPU", "GPU") if name in available}]
    ready = []
    for task in spec.tasks:
        work, model = task_work(spec, task), build_model(task, data[task.name], spec.seed)
        described = describe_task(task, spec.resources_of(task), data[task.name], model)
        found = shapes_profile(spec, task, work, data[task.name], described, model)
        ready.append(_Ready(task=task, work=work, data=data[task.name], profile=found))
    try:
        _put_together(spec, ready, nodes, COUNTED, None).save(plan_path(layout))
    except DoesNotFit as error:
        # who drives the campaign has looked at the cluster itself, and may wait for machines
        logger.info("no plan is kept: %s", error)


def _ready(
    spec: CampaignSpec,
    task: AnyTask,
    work: TaskWork,
    layout: Layout,
    say: Say,
    asked: Asked,
) -> tuple[_Ready, float]:
    say(f"{task.name}: reading data")
    data = prepare_data(task, layout.cache, resolve_pretrained(task.model))
    model = build_model(task, data, spec.seed)
    described = describe_task(task, spec.resources_of(task), data, model)
    start_s = 0.0
    if asked.profile is not None:
        found = check_profile(asked.profile, task.name, described, work.trials)
    elif not asked.probe:
        found = shapes_profile(spec, task, work, data, described, model)
    else:
        del model

        def say_of(text: str) -> None:
            say(f"{task.name}: {text}")

        found, start_s = probe_task(spec, task, work, data, described, say_of, asked.step_seconds)
    return _Ready(task=task, work=work, data=data, profile=found), start_s


def _put_together(
    spec: CampaignSpec,
    ready: Sequence[_Ready],
    nodes: Sequence[Node],
    source: str,
    profile: Profile | None,
) -> Plan:
    overhead = profile.overhead if profile else None
    memory = {each.task.name: _memory(each.profile) for each in ready}
    works = {each.task.name: each.work for each in ready}
    fits = check_room(spec, works, nodes, memory)
    tasks, notes = [], list(unused.unused_resources(spec, fits, nodes))
    for each, fit in zip(ready, fits, strict=True):
        hours = None
        if overhead is not None:
            hours = task_hours(each.work, each.profile, overhead, fit.side_by_side)
        data_bytes, timed = disk.size_of(each.data.folder), len(set(spec.measure.batch))
        written = disk.task_bytes(each.work, each.profile, data_bytes, fit.side_by_side, timed)
        longest = make_task(each.task, each.data, 0).max_length
        notes += unused.unused_of_search(spec, each.task, each.work)
        notes += unused.unused_of_measure(spec, each.task, longest)
        if len(ready) == 1:  # other tasks take what one leaves
            notes += unused.unused_places(each.task, each.work, fit, hours.idle if hours else 0.0)
        tasks.append(
            TaskPlan(
                task=each.task.name,
                kind=each.task.kind,
                data_hash=each.data.content_hash,
                trials=len(each.work.trials),
                rounds=[len(trials) for trials in each.work.rounds],
                workers=each.work.workers,
                side_by_side=fit.side_by_side,
                steps={phase: number for phase, number in each.work.steps().items() if number},
                hours=hours,
                bytes=written,
                memory_bytes=memory[each.task.name],
                device_bytes=max(cost.device_bytes for cost in each.profile.costs),
            )
        )
    return Plan(
        version=VERSION,
        name=spec.name,
        spec_hash=spec.digest(),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        machine=profile.machine if profile else {},
        machines=machines(nodes),
        tasks=tasks,
        **_sums(spec, ready, tasks, fits, nodes, overhead),
        warnings=[*_warnings(ready, spec), *(w for fit in fits for w in fit.warnings)],
        unused=notes,
        at_most=spec.search.stopping is not None,
    )


def _sums(
    spec: CampaignSpec,
    ready: Sequence[_Ready],
    tasks: Sequence[TaskPlan],
    fits: Sequence[TaskFit],
    nodes: Sequence[Node],
    overhead: Overhead | None,
) -> dict[str, Any]:
    """Over all tasks, which share the machines."""
    seconds = cpus = gpus = None
    held = {task.name: spec.resources_of(task) for task in spec.tasks}
    if overhead is not None:
        rounds = {
            each.task.name: [
                [model.whole for model in models]
                for models in round_hours(each.work, each.profile, overhead)
            ]
            for each in ready
        }
        hours = {task.task: task.hours for task in tasks if task.hours is not None}
        after = [h.parts[p] for h in hours.values() for p in (MEASURING, END) if p in h.parts]
        training = overhead.search_s + shared_makespan(rounds, held, nodes)
        seconds = overhead.begin_s + training + total(after)
        cpus = total(h.worker * held[name].cpus_per_worker for name, h in hours.items())
        gpus = total(h.worker * held[name].gpus_per_worker for name, h in hours.items())
    largest = {task.task: task.bytes.passing // task.side_by_side for task in tasks}
    return {
        "seconds": seconds,
        "cpu_seconds": cpus,
        "gpu_seconds": gpus if gpus and gpus.value else None,
        "bytes": disk.campaign_bytes([t.bytes for t in tasks], spec.tracking.uri is None),
        "passing_bytes": passing_bytes(largest, held, fits),
    }


def _memory(profile: TaskProfile) -> int:
    peak = max(cost.memory_bytes for cost in profile.costs)
    return peak + RAY_BYTES if peak else 0


def _warnings(ready: Sequence[_Ready], spec: CampaignSpec) -> list[str]:
    """What the costs do not know."""
    found = []
    for each in ready:
        workers, probed = each.work.workers, each.profile.world
        if probed and probed < workers:
            found.append(
                f"task {each.task.name}: {workers} workers were probed as {probed}: what they "
                "say to each other over the network is not in the hours"
            )
        if probed and each.profile.groups < min(
            each.work.side_by_side, max(map(len, each.work.rounds), default=1)
        ):
            found.append(
                f"task {each.task.name}: {each.work.side_by_side} trials side by side were probed "
                f"as {each.profile.groups}: how they slow each other down is not in the hours"
            )
    return found


def _machine() -> dict[str, Any]:
    import torch

    from lowrank.timing import fingerprint

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return fingerprint(device, torch.float32) | {"memory_bytes": memory_bytes()}

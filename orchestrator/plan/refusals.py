"""Campaigns that cannot be: no room for a trial, or not enough disk. Each with what would fit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from orchestrator.layout import Layout
from orchestrator.plan import disk
from orchestrator.plan.fit import DoesNotFit, Node, TaskFit, task_fit
from orchestrator.plan.plan import Plan
from orchestrator.plan.work import TaskWork
from orchestrator.spec import CampaignSpec
from orchestrator.wording import count


def check_room(
    spec: CampaignSpec,
    works: Mapping[str, TaskWork],
    nodes: Sequence[Node],
    memory: Mapping[str, int] | None = None,
) -> list[TaskFit]:
    """How each task fits.

    Raises:
        DoesNotFit: One of them does not, not even one trial.
    """
    fits = []
    for task in spec.tasks:
        most = max(map(len, works[task.name].rounds), default=1)
        resources = spec.resources_of(task)
        fits.append(task_fit(task.name, resources, nodes, most, (memory or {}).get(task.name, 0)))
    if refusals := [refusal for fit in fits for refusal in fit.refusals]:
        raise DoesNotFit("\n".join(refusals))
    return fits


def check_disk(layout: Layout, plan: Plan) -> None:
    """Raise DoesNotFit for a disk that will be full before the campaign is over."""
    there = next((p for p in (layout.root, *layout.root.parents) if p.exists()), None)
    if there is None:
        return
    free = shutil.disk_usage(there).free
    # what is there already, such as prepared data, is free no more
    wanted = sum(plan.bytes.values()) - plan.bytes[disk.DATA] + plan.passing_bytes
    if wanted > free:
        raise DoesNotFit(
            f"storage {layout.storage} has {count(free, 'B')} free, the campaign writes "
            f"{count(wanted, 'B')} ({count(plan.passing_bytes, 'B')} of it for a while); what "
            "would fit: another storage, fewer trials or fewer repeats"
        )

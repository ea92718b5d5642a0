"""Whether a trial fits a cluster, and how many beside each other: of its resources alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import CampaignError
from orchestrator.spec import Resources

DRIVER = "driver"
"""Custom resource that trial drivers take instead of a CPU. Ray Train places its workers in a
group of their own, outside the trial's: a trial that held a CPU would starve its own workers."""

LOCAL_DRIVERS = 64


def check_fits(resources: Resources, available: dict[str, Any], task: str) -> None:
    """Refuse a trial that could never start; Ray would wait for it for ever.

    Raises:
        CampaignError: With what is asked and what is there.
    """
    asked = {
        "CPU": resources.fewest * resources.cpus_per_worker,
        "GPU": resources.fewest * resources.gpus_per_worker,
        DRIVER: 1.0,
    }
    for name, amount in asked.items():
        there = float(available.get(name, 0))
        if amount > there:
            hint = (
                f"; start the head node with --resources='{{\"{DRIVER}\": {LOCAL_DRIVERS}}}'"
                if name == DRIVER
                else f" ({resources.fewest} workers)"
            )
            nodes = "" if name == DRIVER else having(resources.labels)
            raise CampaignError(
                f"resources of task {task}: one trial needs {amount:g} {name}{nodes}, the cluster "
                f"has {there:g}{hint}"
            )


def having(labels: Mapping[str, str]) -> str:
    """` with gpu: H100`; empty without labels."""
    return f" with {', '.join(f'{k}: {v}' for k, v in labels.items())}" if labels else ""


def concurrent_trials(resources: Resources, available: dict[str, Any]) -> int:
    """As many as asked for, but no more than fit beside each other: the first ones take as many
    workers as they may, and the last one what is left, if that is enough for it."""
    if resources.min_workers is not None:
        # by whole workers: Ray counts them node by node
        slots = float(available.get("CPU", 0)) // resources.cpus_per_worker
        if resources.gpus_per_worker:
            slots = min(slots, float(available.get("GPU", 0)) // resources.gpus_per_worker)
        full, rest = divmod(int(slots), resources.workers)
        return max(1, min(resources.concurrent_trials, full + (rest >= resources.fewest)))
    fits = float(available.get("CPU", 0)) // (resources.workers * resources.cpus_per_worker)
    if resources.gpus_per_worker:
        fits = min(
            fits, float(available.get("GPU", 0)) // (resources.workers * resources.gpus_per_worker)
        )
    return max(1, min(resources.concurrent_trials, int(fits)))

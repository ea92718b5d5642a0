"""Specs and costs that are small enough to reckon by hand."""

from __future__ import annotations

from typing import Any

from orchestrator.plan.figures import JobCost, Range
from orchestrator.plan.overhead import Overhead
from orchestrator.plan.profile import TaskProfile
from orchestrator.spec import CampaignSpec
from tests.orchestrator.small import docs_task


def campaign(**fields: Any) -> CampaignSpec:
    """One task, two densities, six steps before the projection and six after it."""
    task = docs_task("letters", steps=20) | {"evaluate_every": 5} | fields.pop("task", {})
    values = {
        "name": "small",
        "tasks": [task],
        "method": {"kind": "flop-l0", "steps": 12, "gated_fraction": 0.5},
        "search": {"density": [0.5, 0.25]},
    }
    return CampaignSpec.model_validate(values | fields)


def cost(setting: str, density: float, **values: Any) -> JobCost:
    """A second for everything."""
    one = Range(value=1.0, low=0.5, high=2.0)
    fields: dict[str, Any] = {
        "setup_s": one,
        "step_s": {phase: one for phase in ("dense", "gated", "finetune", "from-scratch")},
        "projection_s": one,
        "export_s": one,
        "validation_s": {"whole": one, "small": one},
        "test_s": one,
        "model_bytes": {},
        "state_bytes": {"gated": 300, "finetune": 400},
        "weights_bytes": 1000,
        "export_bytes": 100,
        "record_bytes": 10,
        "point_bytes": 1.0,
        "memory_bytes": 1000,
    }
    return JobCost(setting=setting, density=density, **(fields | values))


def profile(*costs: JobCost, **values: Any) -> TaskProfile:
    fields: dict[str, Any] = {
        "described": {"model": "Small", "parameters": 7},
        "timing_s": Range.around(3.0),
        "int8_s": Range(),
        "logged_bytes": 50,
        "world": 1,
        "groups": 1,
    }
    return TaskProfile(costs=[cost("dense", 1.0), *costs], **(fields | values))


def overhead(**seconds: float) -> Overhead:
    """Nothing but what is given."""
    names = ("begin_s", "search_s", "trial_s", "report_s", "task_s")
    values = {name: Range.around(seconds.get(name, 0.0)) for name in names}
    return Overhead(**values, start_s=6.0, measured=True)

"""`lowrank plan`: makes a plan, shows it, keeps it; or holds a campaign against the one it had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jobs.plan_tables import show_comparison, show_plan
from orchestrator.campaign_records import CampaignResult
from orchestrator.errors import CampaignError
from orchestrator.plan.actual import Comparison, against_plan
from orchestrator.plan.make import Asked, make_plan
from orchestrator.plan.nodes import nodes_of
from orchestrator.plan.plan import Plan, layout_of, plan_path
from orchestrator.plan.profile import Profile
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import load_spec


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The options of the command."""

    path: Path
    overrides: Sequence[str]
    cluster: str | None = None
    profile: Path | None = None
    save_profile: Path | None = None
    probe: bool = True
    seconds: float = 8.0
    with_ray: bool = False
    compare: bool = False
    as_json: bool = False


def plan(request: PlanRequest) -> int:
    """Make and show a plan, or a comparison. Returns the exit code."""
    spec = load_spec(request.path, request.overrides)
    # JSON alone goes to standard output; who reads it does not want to read the progress
    talk = Console(soft_wrap=True, highlight=False, stderr=request.as_json)

    def say(text: str) -> None:
        talk.print(text, markup=False)

    if request.compare:
        comparison = _comparison(spec, request.path)
        if request.as_json:
            _print_json(asdict(comparison))
        else:
            show_comparison(comparison, _wide(talk))
        return 0
    _check_options(request)
    given = Profile.load(request.profile) if request.profile else None
    asked = Asked(
        profile=given,
        probe=request.probe,
        step_seconds=request.seconds,
        with_ray=request.with_ray,
    )
    made, profile = make_plan(spec, nodes_of(request.cluster), say, asked)
    if request.save_profile is not None and profile is not None:
        profile.save(request.save_profile)
        say(f"profile  {request.save_profile}")
    kept = keep(spec, made)
    if request.as_json:
        _print_json(asdict(made))
        return 0
    show_plan(made, _wide(talk))
    path = plan_path(layout_of(spec))
    say(f"plan     {path}" if kept else f"the campaign has begun: its plan stays that of {path}")
    return 0


def keep(spec: CampaignSpec, made: Plan) -> bool:
    """Leave the plan in the campaign's folder, unless the campaign has begun with another."""
    layout = layout_of(spec)
    path = plan_path(layout)
    if layout.spec.exists() and path.exists():
        return False
    made.save(path)
    return True


def _check_options(request: PlanRequest) -> None:
    if request.profile is not None and (request.with_ray or request.save_profile):
        raise CampaignError(
            "--profile takes the place of a probe: no --with-ray, no --save-profile"
        )
    if not request.probe and (request.with_ray or request.save_profile or request.profile):
        raise CampaignError(
            "--no-probe counts only: no --profile, no --save-profile, no --with-ray"
        )


def _comparison(spec: CampaignSpec, path: Path) -> Comparison:
    layout = layout_of(spec)
    if not layout.result.exists():
        raise CampaignError(
            f"campaign {spec.name!r} has no result in {layout.root} yet: lowrank run {path}"
        )
    result = CampaignResult.load(layout.result)
    comparison = against_plan(layout, result, spec.tracking.uri is None)
    if comparison is None:
        raise CampaignError(
            f"campaign {spec.name!r} has no plan in {layout.root}: lowrank plan {path} before it "
            "starts"
        )
    return comparison


def _wide(console: Console) -> Console:
    # a pipe has no width of its own; tables should not wrap there
    return console if console.is_terminal else Console(width=140, highlight=False)


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=1))

"""`lowrank promote`, `rollback`, `copy` and `audit`: the registry by hand. Each returns the exit
code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.commands import console, say, task_of
from orchestrator.errors import CampaignError
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import load_spec


def promote(
    path: Path,
    overrides: Sequence[str],
    task_name: str | None,
    version: str | None,
    skip_gates: bool,
    dry_run: bool,
    why: str | None,
) -> int:
    """Champion by hand: the candidate, or any version of the campaign."""
    from orchestrator.promotion import difference, examine, promote_version, registered_name
    from orchestrator.registry import CANDIDATE

    spec = load_spec(path, overrides)
    task = task_of(spec, task_name)
    name, registry = registered_name(spec, task.name), _registry(spec)
    version = version or registry.version(name, CANDIDATE)
    if version is None:
        raise CampaignError(f"model {name!r} has no candidate: lowrank run {path}")
    if skip_gates and not why and not dry_run:
        raise CampaignError("--skip-gates needs --why: the audit trail keeps the reason")
    case = _case(spec, task, name, version, registry, why or "promoted by hand")
    if skip_gates:
        case = _without_gates(case)
    if dry_run:
        outcome = examine(case, name, version, registry, _here)
        _show_checks(outcome)
        _show_difference(difference(registry, name, version))
        say(outcome.sentence)
        return 0 if all(check["passed"] for check in outcome.checks) else 1
    outcome = promote_version(case, name, version, registry, _here, approved=True)
    _show_checks(outcome)
    say(outcome.sentence)
    return 0 if outcome.promoted else 1


def rollback(path: Path, overrides: Sequence[str], task_name: str | None, why: str | None) -> int:
    """Swap champion and previous."""
    from orchestrator.promotion import registered_name

    spec = load_spec(path, overrides)
    name = registered_name(spec, task_of(spec, task_name).name)
    now, before = _registry(spec).rollback(name, why or "rolled back by hand")
    say(f"{name}: version {now} is champion again, version {before} is previous")
    return 0


def copy(
    path: Path,
    overrides: Sequence[str],
    task_name: str | None,
    to: str,
    version: str | None,
    why: str | None,
) -> int:
    """A version under another registered model's name, through the gates again."""
    from orchestrator.promotion import promote_version, registered_name
    from orchestrator.registry import CHAMPION

    spec = load_spec(path, overrides)
    task = task_of(spec, task_name)
    name, registry = registered_name(spec, task.name), _registry(spec)
    if to == name:
        raise CampaignError(f"--to must be another model than {name!r}")
    version = version or registry.version(name, CHAMPION)
    if version is None:
        raise CampaignError(f"model {name!r} has no champion to copy: lowrank promote {path}")
    why = why or f"copied from {name} version {version} by hand"
    case = _case(spec, task, name, version, registry, why)
    made = registry.copy(name, version, to, why)
    say(f"{to} version {made} is {name} version {version}")
    outcome = promote_version(case, to, made, registry, _here, approved=True)
    _show_checks(outcome)
    say(outcome.sentence)
    return 0 if outcome.promoted else 1


def audit(path: Path, overrides: Sequence[str], task_name: str | None, model: str | None) -> int:
    """Who moved what, when, and why."""
    from orchestrator.promotion import registered_name
    from orchestrator.registry import CANDIDATE, CHAMPION, PREVIOUS

    spec = load_spec(path, overrides)
    name = model or registered_name(spec, task_of(spec, task_name).name)
    registry = _registry(spec)
    table = Table("when (UTC)", "who", "what", "version", "champion before", "why")
    for event in registry.trail(name):
        what = event.action if event.came_to_pass else f"{event.action}, did not come to pass"
        when = event.when[:19].replace("T", " ")
        table.add_row(when, event.who, what, event.version, event.before or "", event.why)
    _print(table)
    now = {alias: registry.version(name, alias) for alias in (CHAMPION, PREVIOUS, CANDIDATE)}
    say(
        f"{name}: " + ", ".join(f"{k} {'is version ' + v if v else 'none'}" for k, v in now.items())
    )
    return 0


def _here(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _case(spec: CampaignSpec, task: Any, name: str, version: str, registry: Any, why: str) -> Any:
    """A version with the record that the campaign's result has of it."""
    from orchestrator.campaign_records import CampaignResult
    from orchestrator.data.prepare import prepare_data
    from orchestrator.layout import Layout
    from orchestrator.models import resolve_pretrained
    from orchestrator.promotion import Case

    key = registry.tags(name, version).get("lowrank.key")
    layout = Layout.of(spec.storage, spec.name)
    if not layout.mirror.fetch_file(layout.result):
        where = layout.mirror.place(layout.root)
        raise CampaignError(f"campaign {spec.name!r} has no result in {where}")
    results = {r.task: r for r in CampaignResult.load(layout.result).tasks}
    result = results.get(task.name)
    record = next((r for r in result.trials if r.key == key), None) if result else None
    if result is None or record is None:
        raise CampaignError(
            f"version {version} of {name!r} (trial {key}) is not of this campaign's last result"
        )
    pretrained = resolve_pretrained(task.model)
    data = prepare_data(task, layout.cache, pretrained, layout.mirror)
    return Case(
        spec=spec,
        task=task,
        record=record,
        dense=result.dense,
        data=str(data.folder),
        data_hash=data.content_hash,
        why=why,
    )


def _without_gates(case: Any) -> Any:
    """The artifact must still be what its record says, and keep its contract."""
    from dataclasses import replace

    bare = {"gates": [], "load_test": 0, "require_license": False}
    promote = case.spec.promote.model_copy(update=bare)
    return replace(case, spec=case.spec.model_copy(update={"promote": promote}))


def _show_checks(outcome: Any) -> None:
    for check in outcome.checks:
        say(f"  {'pass' if check['passed'] else 'FAIL'}  {check['rule']}: {check['value']}")


def _show_difference(rows: Sequence[tuple[str, str, str]] | None) -> None:
    if not rows:
        say("there is no champion yet" if rows is None else "this is today's champion")
        return
    table = Table("", "champion", "this version", title="against today's champion")
    for row in rows:
        table.add_row(*row)
    _print(table)


def _print(table: Table) -> None:
    # a pipe has no width of its own
    (console if console.is_terminal else Console(width=160)).print(table)


def _registry(spec: CampaignSpec) -> Any:
    from orchestrator.registry import Registry
    from orchestrator.tracking import default_tracking_uri

    tracking = spec.tracking.uri or default_tracking_uri(spec.storage)
    uri = spec.tracking.registry or tracking
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise CampaignError(f"there is no registry at {uri} yet: lowrank run first")
    return Registry(uri, tracking)

"""What each command of `lowrank` does. Returns the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.errors import CampaignError, redact_uri
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import load_spec

console = Console(soft_wrap=True, highlight=False)


def say(text: str) -> None:
    console.print(text, markup=False)


def validate(path: Path, overrides: Sequence[str]) -> int:
    """Read the spec; list tasks and trials."""
    from orchestrator.search import expected_trials, plan_trials

    spec = load_spec(path, overrides)
    say(f"{path}: campaign {spec.name!r}, seed {spec.seed}, results under {spec.storage}")
    for task in spec.tasks:
        resources = spec.resources_of(task)
        plans, expected = plan_trials(spec, task, data_hash=""), expected_trials(spec, task)
        method = spec.method_of(task)
        most = "at most " if spec.search.stopping else ""
        say(
            f"  {task.name} ({task.kind}): dense {task.dense.steps} steps; {expected} trials "
            f"of {most}{method.steps} steps on {resources.workers_in_words} worker(s), "
            f"{resources.concurrent_trials} side by side"
        )
        for plan in plans:
            say(f"    {plan.name}")
        if (warm := spec.search.warm_start) is not None:
            # what they hold is read when the campaign starts: this needs no tracking store
            names = ", ".join(warm.campaigns)
            say(
                f"    up to {warm.top} draw(s) of each at a density give way to the best of {names}"
            )
        if expected > len(plans):
            learns = "what the sampler learns from"
            values = learns if spec.search.sampler != "random" else "the values of the best of"
            say(f"    and {expected - len(plans)} more with {values} these")
    return 0


def run(
    path: Path, overrides: Sequence[str], measure_again: bool = False, changed: bool = False
) -> int:
    """Run or finish the campaign."""
    from orchestrator.campaign import Campaign
    from orchestrator.report_trials import stops_of
    from orchestrator.tracking import default_tracking_uri

    spec = load_spec(path, overrides)
    campaign = Campaign(spec, say, measure_again, changed)
    result = campaign.run()
    _tables(result)
    _against_plan(campaign.layout, result, spec)
    uri = spec.tracking.uri or default_tracking_uri(spec.storage)
    say(f"report   {campaign.layout.mirror.place(campaign.layout.report)}")
    say(f"MLflow   {redact_uri(uri)}   (lowrank ui {path})")
    if any(task.stopped for task in result.tasks):
        say(f"{stops_of(*result.tasks)} (search.stopping)")
    failed = sum(len(task.failed) for task in result.tasks)
    if failed:
        say(f"{failed} trial(s) failed; their reasons are in the report")
    return 0


def report(path: Path, overrides: Sequence[str]) -> int:
    """Tables in the terminal, and the HTML file again."""
    from orchestrator.campaign_records import CampaignResult
    from orchestrator.layout import Layout
    from orchestrator.report import write_report
    from orchestrator.report_card import kept_cards

    spec = load_spec(path, overrides)
    layout = Layout.of(spec.storage, spec.name)
    if not layout.mirror.fetch_file(layout.result):
        where = layout.mirror.place(layout.root)
        raise CampaignError(
            f"campaign {spec.name!r} has no result in {where} yet: lowrank run {path}"
        )
    result = CampaignResult.load(layout.result)
    _tables(result)
    comparison = _against_plan(layout, result, spec)
    cards = kept_cards(layout, result.tasks)
    say(f"report   {write_report(result, layout.report, comparison, cards)}")
    layout.mirror.push_file(layout.report)
    return 0


def results(path: Path, overrides: Sequence[str], task_name: str | None, out: Path) -> int:
    """A page in Markdown with its plots, from the records in MLflow."""
    from datetime import UTC, datetime

    from orchestrator.results import (
        Asked,
        NotStartedError,
        read_notes,
        read_results,
        write_results,
    )
    from orchestrator.tracking import default_tracking_uri
    from orchestrator.tracking.reading import RunReader

    spec = load_spec(path, overrides)
    tasks = [task_of(spec, task_name)] if task_name else spec.tasks
    if out.suffix != ".md":
        raise CampaignError(f"--out must name a file that ends in .md, got {out}")
    read_notes(out)  # a file that may not be replaced is told of before the records are read
    reader = RunReader(spec.tracking.uri or default_tracking_uri(spec.storage), spec.name)
    found, reasons = [], []
    for task in tasks:
        try:
            found.append(read_results(reader, spec, task))
        except NotStartedError as error:
            reasons.append(str(error))
    if not found:
        raise CampaignError("; ".join(reasons))
    asked = Asked(spec=path, overrides=overrides, task=task_name, out=out)
    page = write_results(found, asked, datetime.now(UTC).date())
    for reason in reasons:
        say(f"left out: {reason}")
    for each in found:
        missing = len(each.missing) + each.to_come
        say(f"{page}: {each.task.name}: {len(each.finished)} trials, {missing} missing")
    return 0


def compress(
    path: Path,
    overrides: Sequence[str],
    output: Path,
    task_name: str | None,
    density: float | None,
) -> int:
    """One task, one density, this process."""
    from lowrank.density import check_density
    from orchestrator.compress import compress_one

    spec = load_spec(path, overrides)
    task = task_of(spec, task_name)
    if density is not None:
        check_density(density)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CampaignError(f"--output must be a new or empty folder, got {output}")
    record = compress_one(spec, task, density, output.absolute(), say)
    name = record.metric.name
    assert record.densities is not None
    say(
        f"{output}: {record.size.num_parameters:,} parameters, "
        f"{record.densities.parameters:.1%} of dense "
        f"({record.densities.prunable:.2%} of the pruned matrices), test {name} "
        f"{record.test[name]:.4f}"
    )
    return 0


def export(folder: Path, form: str, out: Path, verify: bool) -> int:
    """One form of a finished model, verified."""
    from lowrank.conversion import convert, read_note, verify_export

    note = read_note(convert(folder, form, out))
    sizes = note["sizes"]
    say(f"{out}: {note['says']}")
    words = {"prunable": "pruned matrices", "macs": "multiply-accumulates per token"}
    for name, value in sizes["densities"].items():
        target = note["target_density"] if name == "prunable" and form != "folded" else None
        asked = "" if target is None else f", at most {target:g} asked for"
        say(f"  {value:8.2%} of the dense {words.get(name, name)}{asked}")
    if not verify:
        say("  not verified: lowrank export without --no-verify loads it in a fresh process")
        return 0
    verdict, _ = verify_export(out)
    say(
        f"  verified in a fresh process by {', '.join(verdict.routes)}: logits within "
        f"{verdict.error:.1e} of the model's, {verdict.tolerance:g} allowed"
    )
    return 0


def ui(path: Path, overrides: Sequence[str], port: int) -> int:
    """MLflow's server on the campaign's store, until Ctrl-C."""
    from orchestrator.layout import Layout
    from orchestrator.tracking import default_tracking_uri, experiment_id

    spec = load_spec(path, overrides)
    if spec.tracking.uri and not spec.tracking.uri.startswith("sqlite:"):
        say(f"this campaign's MLflow is a server already: {redact_uri(spec.tracking.uri)}")
        return 0
    uri = spec.tracking.uri or default_tracking_uri(spec.storage)
    if not Path(uri.removeprefix("sqlite:///")).exists():
        raise CampaignError(f"nothing is recorded in {uri} yet: lowrank run {path}")
    layout = Layout.of(spec.storage, spec.name)
    experiment = experiment_id(uri, spec.name)
    # MLflow's first page is about traces of language model applications
    page = f"/#/experiments/{experiment}/runs" if experiment else ""
    say(f"the campaign's runs: http://127.0.0.1:{port}{page}    Ctrl-C to end")
    # the server starts its helpers by name, so this environment's programs come first
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--artifacts-destination",
        str(layout.artifacts_of(uri)),
        "--port",
        str(port),
    ]
    sys.stdout.flush()
    # the server takes this process's place: whatever ends `lowrank ui` ends the server
    os.execve(sys.executable, command, {**os.environ, "PATH": search})


def _tables(result: Any) -> None:
    from orchestrator.report_table import terminal_table

    # a pipe has no width of its own; tables should not wrap there
    wide = console if console.is_terminal else Console(width=160)
    for task in result.tasks:
        wide.print(terminal_table(task))
        say(task.choice.sentence)
        if task.promotion is not None:
            say(task.promotion.sentence)


def _against_plan(layout: Any, result: Any, spec: CampaignSpec) -> Any:
    """What it came to beside its plan, if it had one with hours."""
    from jobs.plan_tables import show_comparison
    from orchestrator.plan.actual import against_plan

    comparison = against_plan(layout, result, spec.tracking.uri is None)
    if comparison is not None and comparison.seconds:
        show_comparison(comparison, console if console.is_terminal else Console(width=160))
    return comparison


def task_of(spec: CampaignSpec, name: str | None) -> Any:
    """A task by its name, or the only one."""
    if name is not None:
        try:
            return spec.task(name)
        except ValueError as error:
            raise CampaignError(f"--task: {error}") from None
    if len(spec.tasks) > 1:
        names = ", ".join(task.name for task in spec.tasks)
        raise CampaignError(f"--task is needed, the spec has {len(spec.tasks)}: {names}")
    return spec.tasks[0]

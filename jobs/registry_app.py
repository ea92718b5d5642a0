"""Commands that work on the registry by hand: promote, rollback, copy, audit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from jobs.spec_options import SetOption, SpecArgument, TaskOption

WhyOption = Annotated[
    str | None,
    typer.Option("--why", help="The reason; the audit trail keeps it.", metavar="TEXT"),
]
VersionOption = typer.Option("--version", help="Registry version; by default the candidate.")


def add_to(app: typer.Typer) -> None:
    """Make them commands of `lowrank`."""
    for command in (promote, rollback, copy, audit):
        app.command()(command)


def promote(
    spec: SpecArgument,
    set_: SetOption,
    task: TaskOption = None,
    version: Annotated[str | None, VersionOption] = None,
    why: WhyOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Fetch, evaluate and check it, show how it differs from today's champion, and "
            "move nothing.",
        ),
    ] = False,
    skip_gates: Annotated[
        bool,
        typer.Option("--skip-gates", help="Promote even if a gate of the spec fails; needs --why."),
    ] = False,
) -> None:
    """Make a registered model the champion, after fetching and evaluating it again.

    This is also how a model is approved that waits because of `promote.approval`. Exits with 1 if
    a check fails.
    """
    from jobs.registry import promote as command

    _exit(command, spec, set_, task, version, skip_gates, dry_run, why)


def rollback(
    spec: SpecArgument, set_: SetOption, task: TaskOption = None, why: WhyOption = None
) -> None:
    """Give the champion's place back to the version that held it before."""
    from jobs.registry import rollback as command

    _exit(command, spec, set_, task, why)


def copy(
    spec: SpecArgument,
    set_: SetOption,
    to: Annotated[str, typer.Option("--to", help="Name of the other model.", metavar="MODEL")],
    task: TaskOption = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Registry version; by default the champion.")
    ] = None,
    why: WhyOption = None,
) -> None:
    """Copy a version to another registered model, say from staging to production.

    The copy has the artifact and the tags of the original. It becomes champion there if it passes
    the gates again. A version that was copied before is not copied twice.
    """
    from jobs.registry import copy as command

    _exit(command, spec, set_, task, to, version, why)


def audit(
    spec: SpecArgument,
    set_: SetOption,
    task: TaskOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Another registered model, such as one that was copied to."),
    ] = None,
) -> None:
    """Show who moved what in the registry, when, and why.

    The trail lies in the registry itself, as tags of the registered model. Who acts is the
    account's name, or LOWRANK_USER where that tells nothing.
    """
    from jobs.registry import audit as command

    _exit(command, spec, set_, task, model)


def _exit(command: Callable[..., int], *args: object) -> None:
    from jobs.failure import run_command

    raise typer.Exit(run_command(command, *args))

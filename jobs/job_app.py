"""Commands that talk to a cluster: `lowrank submit`, and `lowrank job` for what was submitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from jobs.spec_options import ChangedOption, MeasureAgainOption, SetOption, SpecArgument

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The cluster's dashboard, http://HEAD:8265.",
        metavar="ADDRESS",
        envvar="RAY_API_SERVER_ADDRESS",
        show_default=False,
    ),
]

job = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Look at a campaign that was submitted to a cluster, follow it, stop it.

    Give the spec and the options of `lowrank submit` again: they name the campaign.
    """,
)


def submit(
    spec: SpecArgument,
    set_: SetOption,
    address: AddressOption = None,
    follow: Annotated[
        bool,
        typer.Option("--follow/--no-follow", help="Show its log until it ends, or come back."),
    ] = True,
    measure_again: MeasureAgainOption = False,
    changed: ChangedOption = False,
) -> None:
    """Run a campaign on a Ray cluster, or finish it there.

    The spec is checked here, sent with its overrides, and run by `lowrank run` on the head node, so
    its image needs this package. Storage and data are paths of the cluster, absolute and the same
    on every node; passwords belong into the environment of its nodes, not into the spec.

    Ctrl-C leaves the campaign running. The same command again follows one that runs, and goes on
    with one that was stopped or has failed. Exits as the campaign does: 0 if it succeeded, 130 if
    it was stopped.

      lowrank submit SPEC --address http://HEAD:8265

      lowrank job status SPEC, lowrank job logs SPEC, lowrank job stop SPEC

    If the cluster wants a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
    docs/cluster.md says how to set one up.
    """
    from jobs.submit import submit as command

    asked = {"--measure-again": measure_again, "--changed": changed}
    options = [option for option, is_set in asked.items() if is_set]
    _exit(command, spec, set_, address, follow, options)


@job.command()
def status(spec: SpecArgument, set_: SetOption, address: AddressOption = None) -> None:
    """Show every start of the campaign on the cluster, and the last lines it said."""
    from jobs.submit import status as command

    _exit(command, spec, set_, address)


@job.command()
def logs(
    spec: SpecArgument,
    set_: SetOption,
    address: AddressOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the campaign ends.")
    ] = False,
) -> None:
    """Show what the campaign's last start has said."""
    from jobs.submit import logs as command

    _exit(command, spec, set_, address, follow)


@job.command()
def stop(spec: SpecArgument, set_: SetOption, address: AddressOption = None) -> None:
    """End the campaign cleanly: what is finished is kept, and its runs are closed.

    Waits until it has ended. `lowrank submit` goes on from there.
    """
    from jobs.submit import stop as command

    _exit(command, spec, set_, address)


def _exit(command: Callable[..., int], *args: object) -> None:
    from jobs.failure import run_command

    raise typer.Exit(run_command(command, *args))

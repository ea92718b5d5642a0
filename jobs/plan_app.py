"""The command `lowrank plan`: its options, and the help that teaches them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.spec_options import SetOption, SpecArgument


def plan(
    spec: SpecArgument,
    set_: SetOption,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="JSON",
            help='Machines that are not here: \'{"CPU": 64, "GPU": 8}\', or a list, '
            '\'[{"CPU": 16, "GPU": 4, "count": 2, "labels": {"pool": "spot"}}]\'. '
            "By default the cluster of RAY_ADDRESS, or this machine.",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile", metavar="FILE", help="Costs from another machine; nothing is probed here."
        ),
    ] = None,
    save_profile: Annotated[
        Path | None,
        typer.Option("--save-profile", metavar="FILE", help="Keep what the probe found."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="--no-probe counts only: bytes, and no hours."),
    ] = True,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=0.1, max=600, help="Of training steps, for each kind of model."
        ),
    ] = 8.0,
    with_ray: Annotated[
        bool,
        typer.Option(
            "--with-ray",
            help="Also run a campaign of a few steps: measures what Ray and MLflow cost here.",
        ),
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Hold a finished campaign against its plan.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="For machines, on standard output.")
    ] = False,
) -> None:
    """What will a campaign cost, and does it fit? Ask before it starts.

    Counts the models, steps and measurements that the spec asks for, trains a few real steps of
    each kind on this machine (half a minute to some minutes, with the campaign's own code, its
    workers and their threads), and tells: hours with a range, memory per worker, bytes that are
    kept, how trials fit the machines, and what the spec leaves unused. Data are prepared where
    `lowrank run` will look for them; nothing else is trained or kept but plan.json.

    A campaign that cannot fit is refused (exit status 2) before anything is probed, with what
    would fit.

    [bold]For a cluster[/bold]  probe on one of its machines, plan anywhere:

      lowrank plan SPEC --save-profile gpu.json

      lowrank plan SPEC --profile gpu.json --cluster '{"CPU": 64, "GPU": 8}'

    [bold]Afterwards[/bold]  `lowrank plan SPEC --compare` shows what was planned beside what it
    came to; the report has the same. A plan is kept until the campaign starts, and then not
    replaced.
    """
    from jobs.failure import run_command
    from jobs.plan import PlanRequest
    from jobs.plan import plan as command

    request = PlanRequest(
        path=spec,
        overrides=set_,
        cluster=cluster,
        profile=profile,
        save_profile=save_profile,
        probe=probe,
        seconds=seconds,
        with_ray=with_ray,
        compare=compare,
        as_json=json_,
    )
    raise typer.Exit(run_command(command, request))

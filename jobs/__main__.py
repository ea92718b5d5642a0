"""The `lowrank` command, also `python -m jobs`.

Only what help needs is imported here: torch, ray and mlflow come in when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from jobs import bench_options as options
from jobs import job_app, plan_app, registry_app
from jobs.spec_options import (
    ChangedOption,
    MeasureAgainOption,
    SetOption,
    SpecArgument,
    TaskOption,
)

app = typer.Typer(
    name="lowrank",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Make transformer models smaller and faster by factorized low-rank pruning.

    A campaign is one YAML file: tasks, a method, densities to try, and the rules by which one
    model per task is picked and promoted in the MLflow registry.

    [bold]Start here[/bold]

      lowrank validate SPEC      is the file right, and what would run?

      lowrank plan SPEC          what will it cost, and does it fit?

      lowrank run SPEC           train, search, measure, choose, promote

      lowrank submit SPEC        the same on a Ray cluster

      lowrank status SPEC        how does it stand? (from another terminal)

      lowrank ui SPEC            look at every run in MLflow

    The same `run` command again finishes what is missing and redoes nothing.
    """,
)


def _show_versions(wanted: bool) -> None:
    """What a bug report needs: this package and what it stands on."""
    if wanted:
        for name in ("lowrank-orchestrator", "torch", "transformers", "ray", "mlflow"):
            typer.echo(f"{name} {version(name)}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_versions, is_eager=True, help="Show versions."),
    ] = False,
) -> None: ...


@app.command()
def validate(spec: SpecArgument, set_: SetOption) -> None:
    """Read a spec, explain every mistake, and list the trials it would run."""
    from jobs.commands import validate as command

    _exit(command, spec, set_)


app.command()(plan_app.plan)


@app.command()
def run(
    spec: SpecArgument,
    set_: SetOption,
    measure_again: MeasureAgainOption = False,
    changed: ChangedOption = False,
) -> None:
    """Run a campaign, or finish one that was interrupted.

    Per task: the dense model is trained (or loaded), Ray Tune runs the trials, each on its own
    data-parallel workers; then speed is measured with the machine to itself, a model is picked
    from the Pareto front, registered, fetched back, evaluated again, and promoted if it passes
    the gates. Ray starts on this machine unless RAY_ADDRESS names a cluster.

    A spec may ask for more than it did before; what is there stays. One that no longer asks for
    finished models is refused with the difference shown, unless --changed is given.
    """
    from jobs.commands import run as command

    _exit(command, spec, set_, measure_again, changed)


@app.command()
def status(
    spec: SpecArgument,
    set_: SetOption,
    watch: Annotated[
        float | None,
        typer.Option("--watch", min=1, metavar="SECONDS", help="Look again every so often."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Each model, however many there are.")
    ] = False,
) -> None:
    """See how a campaign stands, from any terminal, while it runs or after.

    Read from MLflow, so it works from every machine that reaches the tracking server. Whether a
    process drives the campaign is seen on machines that share its storage. Give the options of
    `lowrank run` again.
    """
    from jobs.status import status as command

    _exit(command, spec, set_, watch, every)


app.command()(job_app.submit)
app.add_typer(job_app.job, name="job")


@app.command()
def report(spec: SpecArgument, set_: SetOption) -> None:
    """Show a finished campaign as a table, and write its HTML report again."""
    from jobs.commands import report as command

    _exit(command, spec, set_)


@app.command()
def results(
    spec: SpecArgument,
    set_: SetOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The page, such as docs/results/NAME.md; its plots go to docs/results/NAME/.",
        ),
    ],
    task: Annotated[
        str | None, typer.Option("--task", help="One task of the spec; by default all.")
    ] = None,
) -> None:
    """Write a results page from MLflow's records: methods compared, with plots.

    Tables of quality, paired differences, cost, tuning and gates, and the plots that go with
    them; of several tasks first a table of all, then a chapter for each. The campaign need not be
    finished (the page says what is missing), and its folder may be gone: MLflow is all that is
    read. Give the options of `lowrank run` again, for the spec decides which runs belong to the
    page.

    Text between the lines <!-- notes --> and <!-- /notes --> of the page is yours: it stays when
    the page is written again. A file without such a block is never replaced.
    """
    from jobs.commands import results as command

    _exit(command, spec, set_, task, out)


registry_app.add_to(app)


@app.command()
def compress(
    spec: SpecArgument,
    set_: SetOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model.")],
    task: TaskOption = None,
    density: Annotated[
        float | None, typer.Option(help="Kept fraction; by default method.density.")
    ] = None,
) -> None:
    """Compress one model in this process: no search, no cluster, no tracking.

    Takes model, data and method from one task of a spec, trains or loads the dense model,
    prunes it to one density, and writes a folder that `lowrank.hf.load_pretrained` reads.
    """
    from jobs.commands import compress as command

    _exit(command, spec, set_, output, task, density)


@app.command()
def bench(
    folders: options.Folders = None,
    config: options.Config = None,
    density: options.Densities = None,
    kind: options.Kind = None,
    rank_multiple: options.RankMultiple = 8,
    shape: options.Shapes = None,
    batch: options.Batches = None,
    length: options.Lengths = None,
    new_tokens: options.NewTokens = 32,
    form: options.Forms = None,
    compile_: options.Compile = False,
    reuse_memory: options.ReuseMemory = True,
    repeats: options.Repeats = 9,
    threads: options.Threads = None,
    dtype: options.DtypeOption = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    resources: options.Resources = True,
    out: options.Out = None,
    markdown: options.Markdown = None,
    compare: options.Compare = None,
) -> None:
    """Time a compressed model against its dense one, in every form, alone on this machine.

    Dense, factorized, folded and 8-bit models, and compiled ones, take turns. Beside every
    speed-up stands what the multiply-accumulates promise; each kind of layer is timed alone, so
    that it shows where the rest goes. Read docs/benchmarking.md first.
    """
    given = dict(locals())
    from jobs.bench import bench as command
    from jobs.bench import compare as compare_command
    from jobs.bench import request_of

    if compare is not None:
        _exit(compare_command, *compare)
    _exit(command, request_of(given))


@app.command()
def export(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A finished model: runs/NAME/models/KEY, or what `lowrank compress` wrote.",
            metavar="FOLDER",
            show_default=False,
        ),
    ],
    form: Annotated[str, typer.Option("--form", help="factorized, pivoted, folded, onnx or pt2.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder for the form.")],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Load the result in a fresh process and compare its logits with the model's.",
        ),
    ] = True,
) -> None:
    """Give a compressed model the form that its user can load, and prove that it is the same.

    [bold]factorized[/bold]  small and fast. A folder of transformers; its user installs
    lowrank-orchestrator and writes `import lowrank.auto`. Generation with a cache, half precision,
    further training. Take this one if you can.

    [bold]pivoted[/bold]  the same, r x r numbers less for rank r, and slower: for small files.

    [bold]folded[/bold]  needs nothing but transformers. The factors are multiplied out: on disk, in
    memory and in time it is the dense model again, with the compressed model's answers.

    [bold]onnx[/bold]  small and fast in ONNX Runtime, without torch; any batch and length, two
    products per factorized layer. Logits only: a decoder has no cache. Needs the extra `onnx` here.

    [bold]pt2[/bold]  small and fast in torch alone (torch.export), without transformers. Logits
    only.

    Bytes and the four densities are recounted from the files and printed. Then the result is loaded
    in a fresh process, with nothing that the form says it does not need, and must answer like the
    model that was trained. docs/export.md says more.
    """
    from jobs.commands import export as command

    _exit(command, folder, form, out, verify)


@app.command()
def ui(
    spec: SpecArgument,
    set_: SetOption,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 5000,
) -> None:
    """Open MLflow's pages on the campaign's store: runs, curves, models, registry."""
    from jobs.commands import ui as command

    _exit(command, spec, set_, port)


def _exit(command: Callable[..., int], *args: object) -> None:
    """Run a command; what went wrong is one message and an exit code, not a traceback."""
    from jobs.failure import run_command

    raise typer.Exit(run_command(command, *args))


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()

"""Arguments that several commands share: which campaign, and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecArgument = Annotated[
    Path, typer.Argument(help="The campaign's YAML file.", metavar="SPEC", show_default=False)
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="Override one field, e.g. --set tasks.docs-lm.dense.steps=50. May be repeated.",
        metavar="PATH=VALUE",
        default_factory=list,
        show_default=False,
    ),
]
MeasureAgainOption = Annotated[
    bool,
    typer.Option("--measure-again", help="Time finished models again, with less going on beside."),
]
ChangedOption = Annotated[
    bool,
    typer.Option(
        "--changed",
        help="Go on although the spec no longer asks for some of the finished models.",
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="Name of a task of the spec; may be left out if there is one."),
]

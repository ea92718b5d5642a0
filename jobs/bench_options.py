"""The options of `lowrank bench`, as the command line knows them. Imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """What models are timed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Folders = Annotated[
    list[Path] | None,
    typer.Argument(
        help="A dense export, then one compressed export of it or more.",
        metavar="[DENSE COMPRESSED...]",
        show_default=False,
    ),
]
Config = Annotated[
    str | None,
    typer.Option(help="Random weights instead: bert-base, gpt2-small, or a config.json."),
]
Densities = Annotated[
    list[float] | None,
    typer.Option(
        "--density", help="Of the factors, with --config. May be repeated.", show_default=False
    ),
]
Kind = Annotated[
    str | None, typer.Option(help="encoder or decoder, where a config.json does not say it.")
]
RankMultiple = Annotated[
    int, typer.Option(help="Ranks are rounded down to it, with --config.", min=1)
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        help="BATCHxLENGTH, by default 1x32 and 16x128. May be repeated.",
        show_default=False,
    ),
]
Batches = Annotated[
    list[int] | None,
    typer.Option("--batch", help="Rows of a grid of shapes.", show_default=False),
]
Lengths = Annotated[
    list[int] | None, typer.Option("--length", help="Columns of that grid.", show_default=False)
]
NewTokens = Annotated[int, typer.Option(help="Tokens per row that a decoder generates.", min=1)]
Forms = Annotated[
    list[str] | None,
    typer.Option(
        "--form",
        help="Besides eager: folded, pivoted, int8, onnx, compiled, frozen. Default: folded, int8.",
        show_default=False,
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Also compiled and frozen.")]
ReuseMemory = Annotated[
    bool,
    typer.Option(
        help="On a CPU, keep freed memory for the next pass instead of asking the kernel again.",
    ),
]
Repeats = Annotated[int, typer.Option(help="Interleaved rounds, at least 7.")]
Threads = Annotated[int | None, typer.Option(help="By default all cores of this process.", min=1)]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="By default that of the files, or float32.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU.")]
Seed = Annotated[int, typer.Option(help="Of weights, inputs and bootstrap.")]
Resources = Annotated[bool, typer.Option(help="Memory and load time, in processes of their own.")]
Out = Annotated[Path | None, typer.Option(help="Results as JSON.")]
Markdown = Annotated[Path | None, typer.Option(help="Tables as a page.")]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        help="Two result files side by side; refused if their fingerprints differ.",
        metavar="A.json B.json",
        show_default=False,
    ),
]

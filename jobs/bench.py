"""What `lowrank bench` does: options to the harness, results to files and to the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank.errors import LowRankError

if TYPE_CHECKING:
    from lowrank.benchmark.subjects import Subject
    from lowrank.benchmark.tables import TextTable

console = Console(soft_wrap=True, highlight=False)
SHAPES = ["1x32", "16x128"]
"""A request alone and a batch at work, as in the published tables."""


class UsageError(LowRankError, ValueError):
    """Options that do not go together."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command's options, as they were typed."""

    folders: list[Path]
    config: str | None
    kind: str | None
    density: list[float]
    rank_multiple: int
    shape: list[str]
    batch: list[int]
    length: list[int]
    new_tokens: int
    form: list[str]
    compile: bool
    reuse_memory: bool
    repeats: int
    threads: int | None
    dtype: str | None
    device: str | None
    seed: int
    resources: bool
    out: Path | None
    markdown: Path | None


def request_of(options: Mapping[str, Any]) -> Request:
    """The command line's options, by their names there; those of lists that were not given are
    empty."""
    lists = ("folders", "density", "shape", "batch", "length", "form")
    values: dict[str, Any] = {name: options[name] or [] for name in lists}
    dtype = options["dtype"]
    values |= {"compile": options["compile_"], "dtype": None if dtype is None else dtype.value}
    names = {field.name for field in fields(Request)}
    return Request(**{name: options[name] for name in names - values.keys()}, **values)


def bench(request: Request) -> int:
    """Measure, show, and write what was asked for."""
    import torch

    from lowrank.allocator import reuse_memory
    from lowrank.benchmark.forms import COMPILED, USUAL
    from lowrank.benchmark.harness import Options, run_benchmark
    from lowrank.benchmark.results import save
    from lowrank.benchmark.tables import all_tables, page

    if request.reuse_memory:
        reuse_memory()
    shapes = shapes_of(request.shape, request.batch, request.length)
    forms = [*(request.form or USUAL), *(COMPILED if request.compile else [])]
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = Options(
        shapes=shapes,
        new_tokens=request.new_tokens,
        forms=tuple(forms),
        repeats=request.repeats,
        threads=request.threads,
        device=_device(device),
        seed=request.seed,
        resources=request.resources,
    )
    result = run_benchmark(_subjects(request), options, _say)
    for table in all_tables(result):
        show(table)
    if request.out is not None:
        _say(f"results  {save(result, request.out)}")
    if request.markdown is not None:
        request.markdown.parent.mkdir(parents=True, exist_ok=True)
        request.markdown.write_text(page(result), encoding="utf-8")
        _say(f"page     {request.markdown}")
    return 0


def compare(first: Path, second: Path) -> int:
    """Two result files side by side, or the reason why not."""
    from lowrank.benchmark.results import compare as rows_of
    from lowrank.benchmark.results import read
    from lowrank.benchmark.tables import comparison_table

    show(comparison_table(rows_of(read(first), read(second))))
    return 0


def shapes_of(
    shapes: Sequence[str], batches: Sequence[int], lengths: Sequence[int]
) -> list[tuple[int, int]]:
    """(batch, length) of every cell: the grid of batches and lengths, then single shapes."""
    if bool(batches) != bool(lengths):
        raise UsageError("--batch and --length make a grid together: give both, or --shape")
    found = list(product(batches, lengths))
    for text in shapes or ([] if found else SHAPES):
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None:
            raise UsageError(f"--shape must be BATCHxLENGTH such as 16x128, got {text!r}")
        found.append((int(match[1]), int(match[2])))
    if any(min(shape) < 1 for shape in found):
        raise UsageError(f"batch >= 1 and length >= 1 must hold, got {found}")
    return list(dict.fromkeys(found))


def show(table: TextTable) -> None:
    """Print a table; rows that are no faster are dim."""
    wide = console if console.is_terminal else Console(width=160)
    shown = Table(title=Text(table.title), title_justify="left", caption=Text(table.note))
    for number, heading in enumerate(table.headings):
        shown.add_column(Text(heading), justify="left" if number == 0 else "right")
    for row in table.rows:
        no_faster = row[-1] in ("slower", "no speed-up")
        shown.add_row(*map(Text, row), style="yellow" if no_faster else "")
    wide.print(shown)


def _subjects(request: Request) -> Iterator[Subject]:
    """One after the other: two models of each are in memory at a time."""
    import torch

    from lowrank.benchmark.presets import Kind
    from lowrank.benchmark.subjects import from_config, from_folders

    dtype = None if request.dtype is None else getattr(torch, request.dtype)
    if request.config is None:
        if len(request.folders) < 2 or request.density:
            raise UsageError(
                "give DENSE and COMPRESSED folders, or --config with one --density or more"
            )
        dense, *others = request.folders
        for folder in others:
            yield from_folders(dense, folder, dtype)
        return
    if request.folders or not request.density:
        raise UsageError("--config needs a --density or more, and no folders")
    if request.kind not in (None, "encoder", "decoder"):
        raise UsageError(f"--kind must be encoder or decoder, got {request.kind!r}")
    kind: Kind | None = request.kind  # type: ignore[assignment]
    for density in request.density:
        yield from_config(
            request.config,
            density,
            kind=kind,
            dtype=dtype or torch.float32,
            rank_multiple=request.rank_multiple,
            seed=request.seed,
        )


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device must be cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here")
    return device


def _say(text: str) -> None:
    console.print(text, markup=False)

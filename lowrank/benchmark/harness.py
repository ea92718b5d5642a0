"""One run of the harness: every subject, every cell, into one JSON value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lowrank.benchmark.cells import measure_cell
from lowrank.benchmark.environment import environment
from lowrank.benchmark.forms import USUAL, check_forms
from lowrank.benchmark.layers import measure_layers, with_rest
from lowrank.benchmark.operators import measure_operators
from lowrank.benchmark.phases import NoCache, Work, check_fits, grid
from lowrank.benchmark.resources import measure_resources
from lowrank.benchmark.results import SCHEMA_VERSION
from lowrank.benchmark.subjects import Subject
from lowrank.errors import LowRankError
from lowrank.latency import REPEATS
from lowrank.timing import check_repeats, num_threads


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured of every subject.

    Raises:
        LowRankError: Too few repeats, an unknown form, no shape.
    """

    shapes: list[tuple[int, int]]
    """(batch, length) each."""
    new_tokens: int = 32
    """Generated per row when decoding."""
    forms: tuple[str, ...] = USUAL
    repeats: int = REPEATS
    threads: int | None = None
    """All cores of this process by default."""
    device: torch.device
    seed: int = 0
    """Of inputs and bootstrap."""
    resources: bool = True
    """Whether to start processes for memory and load time."""

    def __post_init__(self) -> None:
        check_repeats(self.repeats)
        check_forms(self.forms)
        if not self.shapes:
            raise LowRankError("a shape (batch x length) is needed")


def run_benchmark(
    subjects: Iterable[Subject], options: Options, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure subjects one after the other; a subject is let go before the next is made.

    Args:
        subjects: Best a generator, on the CPU; they are moved to the device.
        options: What to measure.
        say: Told what is done next.

    Returns:
        The JSON value that `results.save` writes: fingerprint, settings, and per subject its
        sizes, cells (each with layers, rest and operators) and resources.
    """
    measured: list[dict[str, Any]] = []
    dtypes = set()
    with num_threads(options.threads):
        for subject in subjects:
            dtypes.add(next(subject.dense.parameters()).dtype)
            if len(dtypes) > 1:
                raise LowRankError(f"one dtype per run, got {sorted(map(str, dtypes))}")
            measured.append(_subject(_moved(subject, options.device), options, say))
        if not dtypes:
            raise LowRankError("there is nothing to measure")
        print_ = environment(options.device, dtypes.pop())
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": print_,
        "settings": {
            "repeats": options.repeats,
            "seed": options.seed,
            "forms": check_forms(options.forms),
        },
        "subjects": measured,
    }


def _subject(subject: Subject, options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    works = grid(subject.kind, options.shapes, options.new_tokens)
    for work in works:
        check_fits(subject.dense, work)
    cells: list[dict[str, Any]] = []
    left_out: list[str] = []
    for work in works:
        say(f"{subject.name}: {work.name}")
        try:
            cells.append(_cell(subject, work, options))
        except NoCache as error:
            say(f"  left out: {error}")
            left_out.append(f"{work.name}: {error}")
    found = {
        "name": subject.name,
        "kind": subject.kind,
        "sizes": subject.sizes(),
        "cells": cells,
        "left_out": left_out,
    }
    if options.resources:
        say(f"{subject.name}: memory and load time")
        found["resources"] = measure_resources(subject, works[0])
    return found


def _cell(subject: Subject, work: Work, options: Options) -> dict[str, Any]:
    cell = measure_cell(subject, work, options.forms, options.repeats, options.seed)
    cell["layers"] = measure_layers(subject, work, options.repeats, options.seed)
    cell["rest"] = with_rest(cell, cell["layers"])
    cell["operators"] = {
        "dense": measure_operators(subject.dense, work, options.seed),
        "compressed": measure_operators(subject.compressed, work, options.seed),
    }
    return cell


def _moved(subject: Subject, device: torch.device) -> Subject:
    return replace(
        subject, dense=subject.dense.to(device), compressed=subject.compressed.to(device)
    )

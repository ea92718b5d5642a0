"""Reading and writing results pages in tests, and what is on them."""

from __future__ import annotations

import random
import re
from datetime import date
from pathlib import Path
from typing import Any

from orchestrator.records import Int8, ModelRecord
from orchestrator.results import Asked, write_results
from orchestrator.results.read import Results, read_results
from tests.orchestrator.results_factory import (
    FakeReader,
    make_speed,
)

BITS = "bits_per_character"
DENSITIES = [0.5, 0.25, 0.1]
TODAY = date(2026, 11, 22)


def read(reader: Any, spec: Any = None) -> Results:
    spec = spec or reader.spec
    return read_results(reader, spec, spec.tasks[0])


def asked(out: Path, spec: str = "jobs/specs/compare.yaml", *overrides: str) -> Asked:
    return Asked(spec=Path(spec), overrides=overrides, task="letters", out=out)


def write(results: Results, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return write_results([results], asked(folder / "page.md"), TODAY).read_text()


def section(page: str, title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every Markdown table of a text, rows by heading."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def finals(reader: FakeReader, method: str, density: float) -> list[ModelRecord]:
    """The best draw where it was tuned and its repeats, found the long way round."""
    trials = [
        record
        for plan in reader.plans()
        if (record := reader.records.get(plan.key)) is not None
        and (plan.method_name, plan.method.density) == (method, density)
    ]
    draws = [trial for trial in trials if trial.seed == 7]
    best = min(draws, key=lambda trial: trial.quality)
    return [t for t in trials if t.config == best.config]


def as_int8(record: ModelRecord) -> Int8:
    """A quarter of the bytes, a little worse, faster."""
    return Int8(
        test={BITS: record.test[BITS] * 1.01},
        num_bytes=record.size.num_bytes // 4,
        speed=[make_speed(8, 0.3, random.Random(record.key))],
    )


METHODS = ["adaptive", "uniform", "flop-l0", "agp"]


def facts_of(page: str) -> list[tuple[dict[str, str], str]]:
    lines = [line for line in section(page, "Setting").splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    return [({"": name.strip()}, text.strip()) for name, text in cells]


def runs(reader: FakeReader, method: str, density: float) -> list[ModelRecord]:
    return read(reader).runs()[method][density].trials

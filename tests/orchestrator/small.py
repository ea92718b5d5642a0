"""Tasks, data and trained models that are small enough to make anew in every test run."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from orchestrator.data.prepare import PreparedData, prepare_data
from orchestrator.export_model import with_densities
from orchestrator.job import Job
from orchestrator.records import RECORD, ModelRecord
from orchestrator.spec import MethodSpec
from orchestrator.spec_method import merge_method
from orchestrator.spec_tasks import AnyTask, Classification, LanguageModelling, Regression
from orchestrator.tasks import TrainingTask, make_task
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.orchestrator.data.tasks import (
    classification_task,
    language_task,
    prose,
    regression_task,
    table,
    table_files,
    text_files,
)

GPT2 = {
    "type": "gpt2",
    "config": {
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_positions": 32,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}
BERT = {
    "type": "bert",
    "config": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
DENSE = {"steps": 30, "learning_rate": 5e-3, "batch": 8}
LENGTH = 16
"""Context of the language task, most tokens of an example of the classification."""

OTHER_VALUES: dict[str, Any] = {
    "start": "svd",
    "start_rank": "break-even",
    "start_excess": 3.0,
    "rank_multiple": 2,
    "calibration_batches": 7,
    "budget": "macs",
    "gated_fraction": 0.4,
    "learning_rate": 2e-4,
    "anneal_fraction": 0.5,
    "gate_lr": 0.03,
    "penalty_lr": 0.04,
    "price_floor": 0.2,
    "temperature": 0.5,
    "init_open_prob": 0.9,
    "floor_fraction": 0.1,
    "allocation": "greedy",
    "scope": "tensor",
    "granularity": "block",
    "block": 8,
    "movement": True,
    "form": "low-rank",
}
"""A value other than the default for every field of a method that not all kinds have."""

WORDS = {
    "warm": ["fine", "great", "kind", "lovely"],
    "cold": ["dull", "poor", "bleak", "tired"],
    "odd": ["weird", "green", "upside", "sideways"],
}


def docs_task(name: str, steps: int) -> dict[str, Any]:
    """A task as a spec has it, whose data are on every machine."""
    return {
        "name": name,
        "kind": "language-modelling",
        "data": {"source": "python-docs"},
        "model": GPT2,
        "dense": {"steps": steps, "learning_rate": 1e-3},
    }


def with_config(model: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return model | {"config": model["config"] | fields}


def reviews(count: int, labels: tuple[str, ...] = ("cold", "warm"), seed: int = 0) -> list[Any]:
    """Rows of very different lengths whose label shows in their words."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = labels[number % len(labels)]
        length = draw.randint(1, 9)
        words = [*draw.choices(WORDS[label], k=length), f"n{number}s{seed}"]
        rows.append((" ".join(words), label))
    return rows


def make_lm(folder: Path, **fields: Any) -> LanguageModelling:
    """Character-level, on a text file of a few hundred lines; evaluation on 12 windows."""
    fields = {
        "context": LENGTH,
        "model": GPT2,
        "dense": DENSE,
        "evaluate_every": 6,
        "max_eval_examples": 12,
    } | fields
    return language_task(text_files(folder, train=prose(200)), **fields)


def make_classes(
    folder: Path, rows: int = 48, labels: tuple[str, ...] = ("cold", "warm"), **fields: Any
) -> Classification:
    """Classes of made-up reviews, from tables; 40 examples to validate on, 40 to test."""
    fields = {
        "max_length": LENGTH,
        "vocab_size": 160,
        "model": BERT,
        "dense": DENSE,
        "evaluate_every": 6,
    } | fields
    tables = {
        split: table(*reviews(count, labels, seed))
        for seed, (split, count) in enumerate(
            {"train": rows, "validation": 40, "test": 40}.items(), start=1
        )
    }
    return classification_task(table_files(folder, **tables), **fields)


def warmth(count: int, seed: int = 0) -> list[Any]:
    """Pairs of texts with a score from 0 to 5: half of the number of warm words in both."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        warm = draw.randint(0, 5), draw.randint(0, 5)
        texts = [
            [*draw.choices(WORDS["warm"], k=k), *draw.choices(WORDS["cold"], k=5 - k)] for k in warm
        ]
        texts[0].append(f"n{number}s{seed}")
        rows.append((*map(" ".join, texts), f"{sum(warm) / 2}"))
    return rows


def make_scores(folder: Path, rows: int = 48, **fields: Any) -> Regression:
    """Scores of made-up pairs, from tables; 40 examples to validate on, 40 to test."""
    fields = {
        "max_length": LENGTH,
        "vocab_size": 160,
        "model": BERT,
        "dense": DENSE,
        "evaluate_every": 6,
    } | fields
    tables = {
        split: table(*warmth(count, seed), header="one\ttwo\tlabel")
        for seed, (split, count) in enumerate(
            {"train": rows, "validation": 40, "test": 40}.items(), start=1
        )
    }
    return regression_task(table_files(folder, ["one", "two"], **tables), **fields)


def ready(task: AnyTask, cache: Path, seed: int = 0) -> TrainingTask:
    """The runtime task on its prepared data."""
    return make_task(task, prepare_data(task, cache, None), seed)


def method(**fields: Any) -> MethodSpec:
    """By default hard concrete gates, 4 steps of anneal and 2 of hold, then 6 of fine-tuning."""
    common = {"kind": "flop-l0", "steps": 12, "start": "svd"}
    gated = {"gated_fraction": 0.5, "anneal_fraction": 0.67}
    return MethodSpec(**merge_method(common | gated, fields))


def make_job(
    task: AnyTask, data: PreparedData, how: MethodSpec, dense: str | None = None, **fields: Any
) -> Job:
    values: dict[str, Any] = {
        "key": f"{task.name}-{how.density:g}" if dense else f"{task.name}-dense",
        "task": task.model_dump(mode="json"),
        "method": how.model_dump(),
        "data": str(data.folder),
        "seed": 3,
        "dense": dense,
    }
    return Job(**(values | fields))


def train_to(folder: Path, job: Job) -> ModelRecord:
    """Run a job in this process and keep what it exports, as a campaign does."""

    def keep(progress: dict[str, Any], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            shutil.copytree(checkpoint, folder)

    record = replace(run_job(job, LocalWorkers(keep)), export=str(folder))
    record.save(folder / RECORD)
    return record


@dataclass(frozen=True, kw_only=True)
class Family:
    """A dense model and its compressed ones, each in a folder of its own."""

    task: AnyTask
    data: PreparedData
    dense: ModelRecord
    trials: list[ModelRecord]
    """At densities 0.5 and 0.25, in this order."""

    @property
    def records(self) -> list[ModelRecord]:
        return [self.dense, *self.trials]


@contextmanager
def one_core() -> Iterator[None]:
    """One thread, which is faster for small models and leaves the cores to others, and no GPU,
    whose results differ in the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch("torch.cuda.is_available", return_value=False):
            yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def family(kind: str, folder: Path) -> Family:
    """Made once per folder: a test session has one folder, whatever asks."""
    with one_core():
        return _family(kind, folder)


def _family(kind: str, folder: Path) -> Family:
    folder = folder / f"family-{kind}"
    # dropout, so that equal results prove equal random numbers
    if kind == "lm":
        task: AnyTask = make_lm(folder / "raw", model=with_config(GPT2, resid_pdrop=0.1))
    else:
        make = {"classes": make_classes, "scores": make_scores}[kind]
        task = make(folder / "raw", model=with_config(BERT, hidden_dropout_prob=0.1))
    data = prepare_data(task, folder / "cache", None)
    dense = train_to(folder / "dense", make_job(task, data, method()))
    trials = []
    for density in (0.5, 0.25):
        job = make_job(task, data, method(density=density), dense.export)
        record = train_to(folder / f"density-{density}", job)
        record = replace(record, densities=with_densities(record, dense))
        record.save(Path(record.export) / RECORD)
        trials.append(record)
    return Family(task=task, data=data, dense=dense, trials=trials)

"""A training that is stopped anywhere ends, when it goes on, with the bits of one that was not."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from orchestrator import resume
from orchestrator.errors import StorageError
from orchestrator.job import Job
from orchestrator.records import ModelRecord
from orchestrator.snapshot import Snapshot, SnapshotError, SnapshotStore
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.lowrank.processes import in_processes
from tests.orchestrator.small import (
    BERT,
    GPT2,
    make_classes,
    make_job,
    make_lm,
    method,
    ready,
    train_to,
    with_config,
)

DROPOUT = {
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "bert": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
KINDS = ["adaptive", "flop-l0", "flop-agp", "agp", "np-l0", "low-rank", "from-scratch"]
STEPS = {"steps": 24, "gated_fraction": 0.5}


class Stopped(Exception):
    """A process that dies."""


@pytest.fixture(autouse=True)
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state at every validation."""
    monkeypatch.setattr(resume, "INTERVAL_S", 0.0)
    monkeypatch.setattr(resume, "LEAST_APART", 0.0)


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Dense references with dropout, which has a random state of its own."""
    found = {}
    for name, make, model in (("lm", make_lm, GPT2), ("classes", make_classes, BERT)):
        folder = tmp_path_factory.mktemp(name)
        task = make(folder, model=with_config(model, **DROPOUT[model["type"]]))
        data = ready(task, folder / "cache").data
        found[name] = (task, data, train_to(folder / "dense", make_job(task, data, method())))
    return found


def job_of(parent: Any, kind: str, **fields: Any) -> Job:
    task, data, dense = parent
    if kind == "dense":
        return make_job(task, data, method())
    values = STEPS | ({"distill": 0.5} if kind == "adaptive" else {}) | fields
    gated = kind not in ("low-rank", "from-scratch")
    values = values if gated else {k: v for k, v in values.items() if k != "gated_fraction"}
    return make_job(task, data, method(kind=kind, density=0.3, **values), dense.export)


def run_until(job: Job, step: int) -> None:
    """As long as it lives: it dies when it has validated after this step, before that is saved."""

    def die(progress: dict[str, Any], checkpoint: Path | None) -> None:
        if progress.get("step") == step:
            raise Stopped

    with pytest.raises(Stopped):
        run_job(job, LocalWorkers(die))


def same(one: ModelRecord, other: ModelRecord) -> None:
    assert one.export_sha256 == other.export_sha256
    assert (one.test, one.ranks, one.projection) == (other.test, other.ranks, other.projection)
    curves = [[replace(point, seconds=0) for point in each.curve] for each in (one, other)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("kind", ["dense", *KINDS])
def test_it_goes_on_from_every_validation(
    kind: str, parents: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    job = job_of(parents["lm"], kind)
    straight = train_to(tmp_path / "straight", job)
    stops = [point.step for point in straight.curve if point.validation is not None]
    assert len(stops) >= 4
    caplog.set_level(logging.INFO, logger="orchestrator.resume")
    for stop in stops:
        again = replace(job, snapshots=str(tmp_path / f"snapshots{stop}"))
        run_until(again, stop)
        caplog.clear()
        same(train_to(tmp_path / f"resumed{stop}", again), straight)
        # what was validated when the process died had not been saved
        before = [step for step in stops if step < stop]
        told = [r.message for r in caplog.records if r.message.startswith("goes on")]
        assert told == ([f"goes on after step {before[-1]}"] if before else [])


def test_an_encoder_goes_on_too(parents: dict[str, Any], tmp_path: Path):
    job = job_of(parents["classes"], "adaptive", embeddings=True, include=["*"])
    straight = train_to(tmp_path / "straight", job)
    for stop in (12, 18):
        again = replace(job, snapshots=str(tmp_path / f"snapshots{stop}"))
        run_until(again, stop)
        same(train_to(tmp_path / f"resumed{stop}", again), straight)


def test_it_may_die_many_times(parents: dict[str, Any], tmp_path: Path):
    job = job_of(parents["lm"], "adaptive")
    straight = train_to(tmp_path / "straight", job)
    again = replace(job, snapshots=str(tmp_path / "snapshots"))
    for stop in (6, 12, 12, 18, 24):
        run_until(again, stop)
    same(train_to(tmp_path / "resumed", again), straight)


def test_it_may_die_while_it_exports(parents: dict[str, Any], tmp_path: Path):
    """Nothing is left to train then, and the best weights are those of the state."""

    def die(progress: dict[str, Any], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            raise Stopped

    for kind in ("dense", "adaptive"):
        job = job_of(parents["lm"], kind)
        straight = train_to(tmp_path / f"straight-{kind}", job)
        again = replace(job, snapshots=str(tmp_path / f"snapshots-{kind}"))
        with pytest.raises(Stopped):
            run_job(again, LocalWorkers(die))
        same(train_to(tmp_path / f"resumed-{kind}", again), straight)


def test_a_damaged_state_gives_way_to_the_one_before_it(
    parents: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    job = job_of(parents["lm"], "flop-l0")
    straight = train_to(tmp_path / "straight", job)
    again = replace(job, snapshots=str(tmp_path / "snapshots"))
    run_until(again, 24)
    last = max(path for path in (tmp_path / "snapshots").iterdir())
    weights = last / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")
    caplog.set_level(logging.INFO)
    same(train_to(tmp_path / "resumed", again), straight)
    assert "state.safetensors is not what was written; the state before it is used" in caplog.text
    assert "goes on after step 12" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.tensors.update({"model.lm_head.weight": torch.ones(2)}),
        lambda state: state.tensors.pop("optimizer.0.exp_avg"),
        lambda state: state.tensors.update({"optimizer.first": torch.ones(2)}),
        lambda state: state.tensors.update({"optimizer.0.exp_avg": torch.ones(2)}),
        lambda state: state.tensors.pop("worker0.random"),
        lambda state: state.facts.pop("curve"),
        lambda state: state.facts.pop("job"),
        lambda state: state.facts.pop("phase"),
        lambda state: state.facts.update(curve=[{"step": 1}]),
        lambda state: state.facts.update(step="last"),
    ],
)
def test_a_whole_state_of_another_training_is_refused(
    change: Callable[[Snapshot], object], parents: dict[str, Any], tmp_path: Path
):
    """Its digest is right, as after an update of this package."""
    job = replace(job_of(parents["lm"], "dense"), snapshots=str(tmp_path / "snapshots"))
    run_until(job, 12)
    store = SnapshotStore(tmp_path / "snapshots")
    (step,) = store.steps()
    state = store.load(step)
    change(state)
    store.save(step, state)
    with pytest.raises(SnapshotError, match="snapshots: its last state is not one of this train"):
        train_to(tmp_path / "resumed", job)


def test_a_full_disk_does_not_stop_the_training(
    parents: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    def full(*_: Any) -> None:
        raise StorageError("no space left on the device")

    job = job_of(parents["lm"], "low-rank")
    straight = train_to(tmp_path / "straight", job)
    monkeypatch.setattr(SnapshotStore, "save", full)
    again = replace(job, snapshots=str(tmp_path / "snapshots"))
    same(train_to(tmp_path / "resumed", again), straight)
    assert "no state was saved: no space left on the device" in caplog.text


def test_a_state_is_worth_a_minute(
    parents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resume, "INTERVAL_S", 60.0)
    job = replace(job_of(parents["lm"], "low-rank"), snapshots=str(tmp_path / "snapshots"))
    run_until(job, 24)
    assert not (tmp_path / "snapshots").exists()


class ProcessWorkers:
    """One of several processes; dies after a step, or keeps what is exported."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world: int, wrap: Any, stop: int, folder: str) -> None:
        self.rank, self.world, self._stop, self._folder = rank, world, stop, folder
        self._wrap: Callable[[nn.Module], nn.Module] = wrap

    def wrap(self, model: nn.Module) -> nn.Module:
        return self._wrap(model)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def report(self, progress: dict[str, Any], checkpoint: Path | None = None) -> None:
        if progress.get("step") == self._stop:
            raise Stopped
        if checkpoint is not None and self.rank == 0:
            shutil.copytree(checkpoint, self._folder)

    def ending(self) -> bool:
        return False

    def stop_asked(self) -> None:
        pass

    def beat(self) -> None:
        pass


TWO_WORKERS = [("straight", -1, None)]
"""Name, the step at which it dies (-1: it does not), and its states, one run after another."""
for _step in (12, 24):
    TWO_WORKERS += [(f"stopped{_step}", _step, f"states{_step}")]
    TWO_WORKERS += [(f"resumed{_step}", -1, f"states{_step}")]


def work(job: dict[str, Any], folder: str, rank: int, world: int, wrap: Any) -> dict[str, Any]:
    """What each process does; importable, for it is spawned."""
    resume.INTERVAL_S = resume.LEAST_APART = 0  # type: ignore[assignment]
    for name, stop, states in TWO_WORKERS:
        fields = job | {"snapshots": states and f"{folder}/{states}"}
        # the random state that the run before has left behind must not be of help
        torch.manual_seed(len(name) + rank)
        with contextlib.suppress(Stopped):
            workers = ProcessWorkers(rank, world, wrap, stop, f"{folder}/{name}")
            run_job(Job(**fields), workers)
    return {}


@pytest.mark.slow
def test_two_workers_go_on_with_the_same_bits(parents: dict[str, Any], tmp_path: Path):
    """Each with its own dropout, in the gated phase and in the recovery."""
    job = job_of(parents["lm"], "adaptive")
    fields = {f: getattr(job, f) for f in job.__dataclass_fields__}
    in_processes(partial(work, json.loads(json.dumps(fields)), str(tmp_path)), tmp_path)
    straight = load_file(tmp_path / "straight" / "model.safetensors")
    for name, stop, _ in TWO_WORKERS:
        assert (tmp_path / name).exists() == (stop < 0)
        if stop < 0:
            ended = load_file(tmp_path / name / "model.safetensors")
            assert ended.keys() == straight.keys()
            assert all(torch.equal(ended[each], straight[each]) for each in straight)


def test_another_number_of_workers_goes_on_with_the_same_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Without dropout the random states do not matter, and one worker does what two did."""
    task = make_lm(tmp_path)
    data = ready(task, tmp_path / "cache").data
    job = job_of((task, data, train_to(tmp_path / "dense", make_job(task, data, method()))), "agp")
    straight = train_to(tmp_path / "straight", job)
    again = replace(job, snapshots=str(tmp_path / "snapshots"))
    run_until(again, 18)
    store = SnapshotStore(tmp_path / "snapshots")
    for step in store.steps():
        state = store.load(step)
        facts = state.facts | {"world": 2, "worlds": [[0, 2]]}
        store.save(step, replace(state, facts=facts))
    last = store.steps()[0]
    resumed = train_to(tmp_path / "resumed", again)
    assert "saved with 2 workers, goes on with 1" in caplog.text
    assert resumed.worlds == [(0, 2), (last, 1)]
    assert straight.worlds == []
    assert resumed.export_sha256 == straight.export_sha256

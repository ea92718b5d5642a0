"""A ladder's trunk and branches: what they make, and that they go on where they were stopped."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.errors import LowRankError
from lowrank.hf import load_pretrained
from orchestrator import resume
from orchestrator.errors import StorageError
from orchestrator.export_model import Trained, export_model, with_densities
from orchestrator.job import Job
from orchestrator.ladder import Ladder, Starts, plan_steps
from orchestrator.records import RECORD, ModelRecord
from orchestrator.snapshot import SnapshotError
from orchestrator.spec_ladder import LadderSpec
from orchestrator.stretch import Recorder
from orchestrator.tasks import make_task
from orchestrator.train_loop import run_job, run_trunk
from orchestrator.workers import LocalWorkers
from tests.lowrank.processes import in_processes
from tests.orchestrator.ladders import DENSITIES, ladder_jobs, run_ladder
from tests.orchestrator.small import (
    GPT2,
    Family,
    make_job,
    make_lm,
    method,
    ready,
    train_to,
    with_config,
)
from tests.orchestrator.test_resume import ProcessWorkers
from tests.orchestrator.test_resume import Stopped as ProcessStopped

Parent = tuple[Any, Any, ModelRecord]


class Stopped(Exception):
    """A process that dies."""


@pytest.fixture(autouse=True)
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state at every validation."""
    monkeypatch.setattr(resume, "INTERVAL_S", 0.0)
    monkeypatch.setattr(resume, "LEAST_APART", 0.0)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Parent:
    """A dense reference with dropout, which has a random state of its own."""
    folder = tmp_path_factory.mktemp("lm")
    task = make_lm(folder, model=with_config(GPT2, n_embd=48, resid_pdrop=0.1))
    data = ready(task, folder / "cache").data
    return task, data, train_to(folder / "dense", make_job(task, data, method()))


@pytest.fixture(scope="module")
def whole(parent: Parent, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ladder that nothing disturbed: trunk, branches, their records."""
    folder = tmp_path_factory.mktemp("whole")
    trunk, branches = ladder_jobs(parent, folder)
    return trunk, branches, run_ladder(trunk, branches, folder / "models")


def ladder_of(job: Job) -> Ladder:
    assert job.ladder is not None
    return Ladder(**job.ladder)


def ready_again(family: Family) -> Any:
    return make_task(family.task, family.data, 0)


class Dies(LocalWorkers):
    """Ends when it has validated after some step, before that is saved; knows which it took."""

    def __init__(self, step: int = -1) -> None:
        self.steps: list[int] = []
        super().__init__(lambda progress, checkpoint: self._heard(progress, step))

    def _heard(self, progress: dict[str, Any], step: int) -> None:
        if "step" in progress:
            self.steps.append(progress["step"])
        if progress.get("step") == step:
            raise Stopped


def die_at(job: Job, step: int) -> None:
    with pytest.raises(Stopped):
        (run_trunk if job.is_trunk else run_job)(job, Dies(step))


def same(one: ModelRecord, other: ModelRecord) -> None:
    assert one.export_sha256 == other.export_sha256
    assert (one.test, one.ranks, one.projection) == (other.test, other.ranks, other.projection)
    curves = [[replace(point, seconds=0) for point in each.curve] for each in (one, other)]
    assert curves[0] == curves[1]


def test_every_density_gets_a_model_on_its_budget(parent: Parent, whole: Any):
    for density, record in zip(DENSITIES, whole[2], strict=True):
        found = with_densities(record, parent[2]).prunable
        assert density - 0.02 < found <= density
        assert record.config["density"] == density
        assert record.projection["expected_density"] == pytest.approx(density, abs=1e-3)
        model = load_pretrained(Path(record.export))
        assert sum(p.numel() for p in model.parameters()) == record.size.num_parameters


def test_a_curve_is_that_of_the_trunk_and_then_of_the_branch(whole: Any):
    trunk, _, records = whole
    rungs = ladder_of(trunk).rungs
    for rung, record in zip(rungs, records, strict=True):
        steps = [point.step for point in record.curve]
        assert steps == list(range(1, rung + 13))
        phases = {point.phase for point in record.curve if point.step > rung + 3}
        assert phases == {"finetune"}
    # what they share is the same in all of them
    assert records[2].curve[: rungs[0]] == records[0].curve[: rungs[0]]


def test_the_trunk_holds_its_rate_and_branches_lower_it(whole: Any):
    trunk, _, records = whole
    first, second, third = ladder_of(trunk).rungs
    rates = {point.step: point.learning_rate for point in records[2].curve}
    # ten steps after each new optimizer
    assert rates[second] == rates[third] == pytest.approx(3e-3)
    assert rates[first + 1] == pytest.approx(3e-4)
    assert rates[third + 12] < 1e-3


def test_seconds_are_charged_once(whole: Any):
    trunk, _, records = whole
    ladder = ladder_of(trunk)
    starts = Starts(ladder.starts, LocalWorkers())
    facts = [starts.load(ladder, rung).facts for rung in range(3)]
    reached = [each["seconds"] for each in facts]
    assert [each["shared_seconds"] for each in facts] == [0, *reached[:-1]]
    assert reached == sorted(reached)
    for record, start in zip(records, facts, strict=True):
        at_the_rung = next(p.seconds for p in record.curve if p.step == len(start["curve"]))
        behind = record.train_seconds + start["shared_seconds"] + 0.002  # both are rounded
        assert behind >= max(point.seconds for point in record.curve) > at_the_rung
    shared = [record.ladder.shared_steps for record in records]
    paid = [record.ladder.trunk_steps for record in records]
    assert shared == [0, *ladder.rungs[:-1]]
    assert [a + b for a, b in zip(shared, paid, strict=True)] == ladder.rungs


def test_what_others_are_charged_with_is_taken_off(lm: Family):
    job = make_job(lm.task, lm.data, method(kind="adaptive", steps=4), lm.dense.export)
    workers = LocalWorkers()
    task = ready_again(lm)
    recorder = Recorder(workers=workers, total_steps=4, before=100.0)
    trained = Trained(model=load_pretrained(Path(lm.dense.export)), prunable=[], shared_seconds=99)
    record = export_model(job, task, workers, recorder, trained)
    assert 1 <= record.train_seconds < 90


def test_previews_follow_the_trunk_and_are_nested(whole: Any):
    trunk, _, records = whole
    curve = records[-1].curve
    seen = [p for p in curve if "projected" in p.extras]
    assert [p.step for p in seen] == [
        p.step for p in curve if p.validation is not None and p.expected_density is not None
    ][: len(seen)]
    densities = [p.extras["projected_density"] for p in seen]
    assert densities == sorted(densities, reverse=True)
    # gates meet the target of the next step, and the projection has no more than that
    assert all(p.extras["projected_density"] <= (p.target_density or 0) for p in seen)
    # nothing is lost by a projection of gates as hard as these
    assert all(abs(p.extras["projected"] - (p.validation or 0)) < 0.02 for p in seen)
    start = Starts(ladder_of(trunk).starts, LocalWorkers()).load(ladder_of(trunk), 2)
    stayed = {name: torch.tensor(each) for name, each in start.facts["job"]["stayed"].items()}
    # a component that stayed in k previews was in the first k: they are nested by their numbers
    ranks = [[int((s >= k).sum()) for s in stayed.values()] for k in range(1, len(seen) + 1)]
    assert all(a >= b for one, other in pairwise(ranks) for a, b in zip(one, other, strict=True))
    assert ranks[0] != ranks[-1]


@pytest.mark.parametrize("stop", [12, 18])
def test_a_trunk_goes_on_with_the_same_bits(parent: Parent, whole: Any, tmp_path: Path, stop: int):
    trunk, branches = ladder_jobs(parent, tmp_path)
    die_at(trunk, stop)
    run_trunk(trunk, LocalWorkers())
    same(train_to(tmp_path / "out", branches[-1]), whole[2][-1])


@pytest.mark.parametrize("stop", [26, 30])
def test_a_branch_goes_on_with_the_same_bits(parent: Parent, whole: Any, tmp_path: Path, stop: int):
    """While gates harden, at the projection, in the recovery."""
    branches = ladder_jobs(parent, tmp_path)[1]
    job = replace(branches[1], ladder=whole[1][1].ladder)
    steps = [p.step for p in whole[2][1].curve if p.validation is not None]
    if stop not in steps:
        stop = min(steps, key=lambda step: abs(step - stop))
    die_at(job, stop)
    same(train_to(tmp_path / "out", job), whole[2][1])


def test_branches_are_functions_of_their_starts(parent: Parent, whole: Any, tmp_path: Path):
    """Not of what ran before them in the process: they may run apart."""
    branches = ladder_jobs(parent, tmp_path)[1]
    torch.manual_seed(99)
    job = replace(branches[2], ladder=whole[1][2].ladder)
    same(train_to(tmp_path / "out", job), whole[2][2])


def test_what_is_reached_is_not_descended_to_again(parent: Parent, tmp_path: Path):
    """A trunk that dies behind a rung without a state of its own begins at that rung."""
    trunk, _ = ladder_jobs(parent, tmp_path)
    trunk = replace(trunk, snapshots=None)
    die_at(trunk, 18)
    again = Dies()
    run_trunk(trunk, again)
    assert again.steps[0] == 18
    third = Dies()
    run_trunk(trunk, third)
    assert third.steps == []


def test_a_damaged_start_is_made_again(parent: Parent, whole: Any, tmp_path: Path):
    trunk, branches = ladder_jobs(parent, tmp_path)
    run_trunk(trunk, LocalWorkers())
    (state,) = (tmp_path / "starts" / "rung1").glob("*/state.safetensors")
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(SnapshotError, match="is not what was written"):
        run_job(branches[1], LocalWorkers())
    again = Dies()
    run_trunk(trunk, again)
    assert again.steps[0] == 18
    same(train_to(tmp_path / "out", branches[1]), whole[2][1])


def test_a_branch_goes_on_at_the_lower_rate_of_a_trunk_that_diverged(
    parent: Parent, whole: Any, tmp_path: Path
):
    trunk, branches = whole[0], ladder_jobs(parent, tmp_path)[1]
    ladder = replace(ladder_of(trunk), starts=str(tmp_path / "starts"))
    workers = LocalWorkers()
    start = Starts(ladder_of(trunk).starts, workers).load(ladder, 0)
    slower = replace(start, facts=start.facts | {"rate_factor": 0.5})
    Starts(ladder.starts, workers).save(ladder, 0, slower)
    record = train_to(tmp_path / "out", branches[0])
    assert record.rate_factor == 0.5
    for point, full in zip(record.curve[12:], whole[2][0].curve[12:], strict=True):
        assert point.learning_rate == pytest.approx(0.5 * full.learning_rate)


def test_a_density_that_no_projection_meets_costs_no_training(parent: Parent, tmp_path: Path):
    trunk, _ = ladder_jobs(parent, tmp_path)
    assert trunk.ladder is not None
    lowest = replace(trunk, ladder=trunk.ladder | {"densities": [0.6, 0.4, 0.001]})
    workers = Dies()
    with pytest.raises(LowRankError, match=r"density >= 0\.\d+ must hold .* got 0.001"):
        run_trunk(lowest, workers)
    assert workers.steps == []


def test_a_start_that_cannot_be_written_is_an_error(parent: Parent, tmp_path: Path):
    """Training is worth more than a state to go on from, but not than that of a branch."""
    trunk, _ = ladder_jobs(parent, tmp_path)
    (tmp_path / "starts").write_text("in the way")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        run_trunk(trunk, LocalWorkers())


def test_steps_of_a_ladder():
    how = method(kind="adaptive", steps=800)
    rungs, branch = plan_steps(LadderSpec(by="trunk"), how, [0.5, 0.35, 0.25, 0.2, 0.1])
    assert branch == 200
    assert rungs[0] == 400
    assert rungs[-1] == 400 + round(4 * 0.15 * 800)
    # as many for each halving: from 0.2 to 0.1 twice as many as from 0.5 to 0.35 and a little
    taken = [b - a for a, b in pairwise(rungs)]
    assert taken[3] / taken[0] == pytest.approx(0.6931 / 0.3567, rel=0.02)
    assert plan_steps(LadderSpec(by="trunk"), how, [0.3]) == ([400], 200)
    # however few there are, each rung is a step of its own
    short = method(kind="adaptive", steps=2)
    few, least = plan_steps(LadderSpec(by="trunk"), short, [0.5, 0.4, 0.3])
    assert (few, least) == ([1, 2, 3], 1)


def on_one_of_two(
    jobs: list[dict[str, Any]], folder: str, rank: int, world: int, wrap: Any
) -> dict[str, Any]:
    """What each process does; importable, for it is spawned. The branch dies once."""
    resume.INTERVAL_S = resume.LEAST_APART = 0  # type: ignore[assignment]
    trunk, branch = (Job(**fields) for fields in jobs)
    for stop in (18, -1):
        with suppress(ProcessStopped):
            run_trunk(trunk, ProcessWorkers(rank, world, wrap, stop, ""))
    for stop in (32, -1):
        with suppress(ProcessStopped):
            run_job(branch, ProcessWorkers(rank, world, wrap, stop, f"{folder}/two"))
    return {}


@pytest.mark.slow
def test_two_workers_make_the_models_of_one(tmp_path: Path):
    """Stopped in the trunk and in the branch besides; without dropout, in which workers differ."""
    task = make_lm(tmp_path)
    data = ready(task, tmp_path / "cache").data
    parent = task, data, train_to(tmp_path / "dense", make_job(task, data, method()))
    trunk, branches = ladder_jobs(parent, tmp_path / "alone")
    run_trunk(trunk, LocalWorkers())
    alone = train_to(tmp_path / "one", branches[1])
    trunk, branches = ladder_jobs(parent, tmp_path / "together")
    jobs = [{f: getattr(j, f) for f in j.__dataclass_fields__} for j in (trunk, branches[1])]
    in_processes(partial(on_one_of_two, json.loads(json.dumps(jobs)), str(tmp_path)), tmp_path)
    two = ModelRecord.load(tmp_path / "two" / RECORD)
    assert two.workers == 2
    # gradients are summed in another order, so scores at the threshold may change places
    assert sum(r["rank"] for r in two.ranks.values()) == pytest.approx(
        sum(r["rank"] for r in alone.ranks.values()), abs=2
    )
    assert two.quality == pytest.approx(alone.quality, rel=2e-3)
    for one, other in zip(alone.curve, two.curve, strict=True):
        assert (other.step, other.learning_rate) == (one.step, one.learning_rate)
        assert other.target_density == pytest.approx(one.target_density)
        assert other.validation == pytest.approx(one.validation, rel=2e-3)

"""Planned bytes against files that real trainings wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.export import WEIGHTS
from lowrank.prunable import prunable_shape
from lowrank.surgery import find_layers
from orchestrator import resume
from orchestrator.job import Job
from orchestrator.layout import Layout
from orchestrator.models import build_model
from orchestrator.plan import disk
from orchestrator.plan.disk import campaign_bytes, found_bytes, record_bytes, size_of, task_bytes
from orchestrator.plan.group import ProbeWorkers
from orchestrator.plan.profile import describe_task
from orchestrator.plan.shapes import shapes_profile, start_density
from orchestrator.plan.work import FINETUNE, GATED, task_work
from orchestrator.records import RECORD
from orchestrator.snapshot import FACTS, TENSORS
from orchestrator.train_loop import run_job
from tests.orchestrator.plan.specs import campaign, cost, profile
from tests.orchestrator.small import Family, make_job, method


class Watching(ProbeWorkers):
    """One process, whose states are looked at while they are there."""

    def __init__(self, states: Path) -> None:
        import torch

        super().__init__(0, 1, torch.device("cpu"))
        self.states = states
        self.found: dict[int, int] = {}

    def report(self, progress: dict[str, Any], checkpoint: Path | None = None) -> None:
        self._look()

    def beat(self) -> None:
        super().beat()
        self._look()

    def _look(self) -> None:
        for folder in self.states.glob("0*"):
            self.found[int(folder.name)] = size_of(folder)


@pytest.mark.parametrize("kind", ["adaptive", "flop-l0", "agp", "low-rank"])
def test_states_have_the_planned_size(
    lm: Family, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resume, "INTERVAL_S", 0.0)
    monkeypatch.setattr(resume, "LEAST_APART", 0.0)
    how = method(kind=kind, density=0.5, steps=24)
    job = make_job(lm.task, lm.data, how, lm.dense.export, snapshots=str(tmp_path / "states"))
    workers = Watching(tmp_path / "states")
    gated = how.gated_steps
    workers.phases = [(GATED, gated), (FINETUNE, how.finetune_steps)]
    run_job(job, workers)
    planned = workers.tape.state_bytes
    before = [size for step, size in workers.found.items() if step <= gated]
    after = [size for step, size in workers.found.items() if step > gated]
    # the planned ones are without the curve's points, of which tiny models have as much
    if kind == "adaptive":  # components leave before the first state is written
        assert 0.5 * planned[GATED] < max(before) < planned[GATED]
    elif before:
        assert max(before) == pytest.approx(planned[GATED], rel=0.1)
    assert max(after) == pytest.approx(planned[FINETUNE], rel=0.1)


def test_the_tensors_of_a_state_are_met_within_two_percent(
    lm: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resume, "INTERVAL_S", 0.0)
    monkeypatch.setattr(resume, "LEAST_APART", 0.0)
    sizes: list[tuple[int, int]] = []

    class Keeping(Watching):
        def _look(self) -> None:
            for folder in self.states.glob("0*"):
                found = (folder / TENSORS).stat().st_size, (folder / FACTS).stat().st_size
                sizes.append(found)

    dense: Job = make_job(lm.task, lm.data, method(), snapshots=str(tmp_path / "states"))
    workers = Keeping(tmp_path / "states")
    workers.phases = [("dense", lm.task.dense.steps)]
    run_job(dense, workers)
    from orchestrator.plan.states import FACTS_BYTES, FACTS_PER_POINT

    tensors, facts = max(sizes)
    assert tensors == pytest.approx(workers.tape.state_bytes["dense"] - FACTS_BYTES, rel=0.02)
    # ends with a state that has most of the curve
    points = len(lm.dense.curve)
    assert facts < FACTS_BYTES + points * FACTS_PER_POINT


def test_models_from_shapes_are_within_a_tenth_of_the_exported(either: Family):
    """Without a probe: weights, the rest of the export, records."""
    values = method().model_dump()
    spec = campaign(
        tasks=[either.task.model_dump(mode="json")], method=values, search={"density": [0.5, 0.25]}
    )
    task = spec.tasks[0]
    work, model = task_work(spec, task), build_model(task, either.data, spec.seed)
    described = describe_task(task, spec.resources, either.data, model)
    shapes = shapes_profile(spec, task, work, either.data, described, model)
    for planned, record in zip(work.models, either.records, strict=True):
        costs = shapes.of(planned) if planned.method else [shapes.dense]
        (found,) = [each for each in costs if each.density == planned.density]
        folder = Path(record.export)
        weights, text = (folder / WEIGHTS).stat().st_size, (folder / RECORD).stat().st_size
        assert found.weights_bytes == pytest.approx(weights, rel=0.02)
        rest = size_of(folder) - weights - text
        assert found.export_bytes == pytest.approx(rest, rel=0.15)
        assert record_bytes(planned, found) == pytest.approx(text, rel=0.15)


def test_the_start_of_each_method(lm: Family):
    model = build_model(lm.task, lm.data, 0)
    layers = find_layers(model, ["*"], ["*lm_head*"], False).layers
    shapes = [prunable_shape(layer) for layer in layers.values()]

    def start(**fields: Any) -> float:
        spec = campaign(
            tasks=[lm.task.model_dump(mode="json")],
            method={"steps": 12} | fields,
            search={"density": [0.3]},
        )
        return start_density(task_work(spec, spec.tasks[0]).trials[0], shapes)

    assert start(kind="adaptive") == pytest.approx(0.6)
    assert start(kind="flop-l0", start_rank="break-even") == 1.0
    # 32 x 96, 32 x 32, 32 x 128 and 128 x 32: rank 32 costs 32 (32 + 96), ...
    full = (32 * 128 + 32 * 64 + 2 * 32 * 160) / (32 * 96 + 32 * 32 + 2 * 32 * 128)
    assert start(kind="flop-l0") == pytest.approx(full)
    assert start(kind="agp", movement=True) == 2.0
    assert start(kind="low-rank") == pytest.approx(0.3)


def test_a_task_by_hand():
    spec = campaign()
    work = task_work(spec, spec.tasks[0])
    setting = work.trials[0].setting
    costs = profile(cost(setting, 0.25, weights_bytes=200), cost(setting, 0.5, weights_bytes=400))
    found = task_bytes(work, costs, data_bytes=7, side_by_side=2, timed=2)
    points = [20, 12, 12]
    records = [10 + points[0], *(10 + p for p in points[1:])]
    speed = 2 * 2 * disk.SPEED_BYTES
    assert found.parts[disk.MODELS] == 1000 + 200 + 400 + 3 * 100 + sum(records) + speed
    logged = 1600 + 300 + 3 * 50 + 2 * sum(records) + speed
    assert found.parts[disk.LOGGED] == logged
    assert found.parts[disk.DATA] == 7
    # of two trials at once three states of 400, or twice the model
    assert found.passing == 2 * max(3 * 400, 2 * (1000 + 100))
    whole = campaign_bytes([found], local_tracking=True)
    assert whole[disk.DATABASE] == found.parts[disk.DATABASE] + disk.DATABASE_BYTES
    assert campaign_bytes([found], False)[disk.DATABASE] == found.parts[disk.DATABASE]
    twice = campaign_bytes([found, found], False)
    # report and result of both tasks are copied for each of them
    once = whole[disk.REST] - found.parts[disk.REST]
    both = twice[disk.REST] - 2 * found.parts[disk.REST]
    assert both == pytest.approx(3 / 2 * (2 * once - 2 * disk.PAGE_BYTES))


def test_what_is_found_is_told_apart(tmp_path: Path):
    layout = Layout(tmp_path, "one")

    def write(path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)

    write(layout.model("k") / WEIGHTS, 100)
    write(layout.root / "spec.yaml", 1)
    write(layout.cache / "hash" / "train.npy", 20)
    write(layout.cache / "other" / "train.npy", 999)
    artifacts = layout.artifacts / "one"
    write(artifacts / "models" / "m" / WEIGHTS, 110)
    write(artifacts / "run" / "artifacts" / "report.html", 3)
    write(artifacts / "run" / "artifacts" / "front-a.png", 4)
    write(tmp_path / "mlflow.db", 50)
    data = [str(layout.cache / "hash")]
    found = found_bytes(layout, data, local_tracking=True)
    assert found == {disk.MODELS: 100, disk.DATA: 20, disk.LOGGED: 110, disk.DATABASE: 50}
    write(layout.report, 5)
    assert found_bytes(layout, data, True)[disk.REST] == 1 + 5 + 3 + 4
    # nobody can tell which part of a database is whose
    write(layout.artifacts / "two" / "file", 1)
    assert disk.DATABASE not in found_bytes(layout, data, True)
    assert set(found_bytes(layout, data, False)) == {disk.MODELS, disk.DATA, disk.REST}

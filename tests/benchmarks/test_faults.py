"""What benchmarks/faults finds between two campaigns, and the page that it writes."""

from __future__ import annotations

import errno
import random
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from benchmarks.faults import storage
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.ledger import Fault, Found, Ledger, compare
from benchmarks.faults.machines import Machines
from benchmarks.faults.page import write_page
from benchmarks.faults.scene import NotNow, Scene
from orchestrator.campaign_records import CampaignResult, Choice, FailedTrial, TaskResult
from orchestrator.layout import Layout
from orchestrator.records import CurvePoint, ModelRecord
from orchestrator.tracking import Tracking
from orchestrator.tracking.journal import Stamped
from tests.orchestrator.record_factory import (
    make_campaign,
    make_dense,
    make_task_result,
    make_trials,
)

Change = Callable[[TaskResult], TaskResult]


def keep(folder: Path, name: str, campaign: CampaignResult) -> None:
    layout = Layout(folder / "runs", name)
    layout.create()
    campaign.save(layout.result)


def of_last(change: Callable[[ModelRecord], ModelRecord]) -> Change:
    return lambda task: replace(task, trials=[*task.trials[:-1], change(task.trials[-1])])


def with_failure(task: TaskResult) -> TaskResult:
    failed = FailedTrial(key="k", task=task.task, config={}, reason="why", method_name="", seed=0)
    return replace(task, failed=[failed])


@pytest.fixture
def tracking(store: str, tmp_path: Path) -> Tracking:
    """Of the disturbed campaign: two runs that ended."""
    tracking = Tracking(store, "faults-1", tmp_path)
    parent = tracking.task_run("faults-1", "docs-lm", "", {})
    run = tracking.model_run("key", parent, "name", {}, {})
    for each in (run, parent):
        tracking.writer(each).end("FINISHED")
    return tracking


def found(folder: Path, uri: str, change: Change = lambda task: task) -> Found:
    trials = make_trials()
    choice = Choice(key=trials[0].key, sentence="", front=[], passed=[])
    task = make_task_result(trials, make_dense("language-modelling", "docs-lm"), choice, failed=[])
    keep(folder, "undisturbed", make_campaign([task]))
    keep(folder, "faults-1", make_campaign([change(task)]))
    return compare(folder, "undisturbed", "faults-1", 100.0, uri)


def test_two_campaigns_with_the_same_models_are_equal(tmp_path: Path, tracking: Tracking):
    each = found(tmp_path, tracking.uri)
    assert each.problems == []
    assert each.planned == each.finished == each.same_bits > 2
    assert (each.lost, each.duplicated, each.open_runs, each.steps_twice) == (0, 0, 0, 0)
    assert each.same_fronts == each.same_champions == each.tasks == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (of_last(lambda record: replace(record, export_sha256="0" * 64)), "is another model"),
        (of_last(lambda record: replace(record, test={"loss": 0.0})), "is another model"),
        (lambda task: replace(task, trials=task.trials[1:]), "is lost"),
        (
            lambda task: replace(
                task, trials=[*task.trials, replace(task.trials[0], key="0" * 16)]
            ),
            "was not planned",
        ),
        (
            lambda task: replace(task, choice=replace(task.choice, key=task.trials[0].key + "x")),
            "another champion",
        ),
        (with_failure, "k: why"),
    ],
)
def test_each_difference_is_a_problem(
    change: Change, problem: str, tmp_path: Path, tracking: Tracking
):
    problems = found(tmp_path, tracking.uri, change).problems
    assert any(problem in each for each in problems), problems


def test_runs_that_are_open_or_doubled_are_problems(tmp_path: Path, tracking: Tracking):
    parent = tracking.client.create_run(
        tracking.experiment_id, tags={"lowrank.key": "key", "mlflow.runName": "again"}
    ).info.run_id
    point = CurvePoint(step=3, phase="finetune", seconds=1.0, train_loss=1.0)
    for at_ms in (1, 2):
        tracking.writer(parent).points([Stamped(point=point, at_ms=at_ms)], "loss")
    each = found(tmp_path, tracking.uri)
    assert (each.duplicated, each.open_runs, each.steps_twice) == (1, 1, 1)
    assert len([p for p in each.problems if "faults-1" in p]) >= 3


def test_the_page_tells_faults_costs_and_problems(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(4):
        fault = Fault(kind="worker killed", at=1e9 + number, what="SIGKILL")
        assert ledger.add(fault) == number + 1
        ledger.went_on(fault, 10.0 * number)
    ledger.end(-9)
    ledger.end(0)
    whole = Found(name="faults-1", seconds=160.0, tasks=2, planned=5, finished=5, same_bits=5)
    out = tmp_path / "page.md"
    write_page(out, ledger, [whole], "python -m benchmarks.faults", 100.0)
    text = out.read_text()
    assert "4 faults cost 60 s in all, 15 s each" in text
    assert "| worker killed | 4 | 15 | 30 |" in text
    assert "(-9: 1, 0: 1)" in text
    assert "Every planned model ended exactly once" in text
    write_page(out, ledger, [replace(whole, problems=["a is lost"])], "", 100.0)
    assert "- a is lost" in out.read_text()
    assert "exactly once" not in out.read_text()


def test_every_kind_of_the_docs_is_there():
    assert len(KINDS) == len(set(KINDS.values())) >= 14


def during(fault: Callable[[Scene], str], folder: Path, seen: Callable[[], bool]) -> str:
    """What a fault of the storage says at its end, once it was seen to last."""
    with ThreadPoolExecutor() as pool:
        said = pool.submit(fault, Scene(cast(Machines, None), folder, random.Random(1)))
        while not seen() and not said.done():
            time.sleep(0.01)
        if isinstance(reason := said.exception() if said.done() else None, NotNow):
            pytest.skip(str(reason))
        assert not said.done()
        return said.result()


def test_a_storage_that_is_read_only_is_so_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "SECONDS", (0.5, 0.5))

    def refused() -> bool:
        try:
            (tmp_path / "new").touch()
        except OSError as error:
            return error.errno == errno.EROFS
        return False

    with (tmp_path / "open").open("w") as file:
        assert "is read-only" in during(storage.forbid_writes, tmp_path, refused)
        file.write("still")
    assert (tmp_path / "open").read_text() == "still"
    assert not refused()


def test_a_storage_that_is_frozen_makes_writers_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "SECONDS", (1.0, 1.0))
    image, folder = tmp_path / "image", tmp_path / "mounted" / "runs"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    folder.parent.mkdir()
    writers: list[subprocess.Popen[bytes]] = []

    def waits() -> bool:
        writers.append(subprocess.Popen(["touch", folder / "file"]))
        try:
            return writers[-1].wait(0.3) != 0
        except subprocess.TimeoutExpired:
            return True

    try:
        for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, folder.parent]):
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(str(error))
    try:
        folder.mkdir()
        assert "waits for 1 s" in during(storage.freeze, folder, waits)
        assert [writer.wait(10) for writer in writers] == [0] * len(writers)
    finally:
        subprocess.run(["umount", folder.parent], check=True)


def test_the_file_system_of_the_whole_machine_is_not_frozen():
    with pytest.raises(NotNow, match="whole machine"):
        storage.freeze(Scene(cast(Machines, None), Path("/"), random.Random(1)))

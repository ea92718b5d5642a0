"""Several tasks in one search, with everything real but Ray, MLflow and the training itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import machines
from orchestrator.campaign_state import Site, TaskState
from orchestrator.errors import CampaignError, TrialError
from orchestrator.housekeeping import Housekeeping
from orchestrator.launch import Launch
from orchestrator.layout import Layout
from orchestrator.progress import Progress
from orchestrator.search import expected_trials
from orchestrator.spec import CampaignSpec
from orchestrator.stopping.signals import Signals
from orchestrator.tracking import TrackingAway
from orchestrator.trainings import Trainings
from orchestrator.turns import Machine
from tests.orchestrator.test_training_stage import SPEC, Cluster, Store

SEARCH = {"density": [0.5, 0.3], "trials_per_density": 2, "penalty_lr": {"uniform": [0.1, 1]}}


class Played:
    """Ray Tune's part: what starts, and what ends first."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        tasks: Sequence[str] = ("quick", "slow"),
        concurrent: int = 2,
        lasts: Callable[[Launch], float] = lambda launch: 1.0,
        dies: Callable[[Launch], bool] = lambda launch: False,
        search: dict[str, Any] = SEARCH,
    ) -> None:
        one = SPEC["tasks"][0]  # type: ignore[index]
        self.spec = CampaignSpec.model_validate(
            SPEC
            | {"tasks": [one | {"name": name} for name in tasks], "search": search}
            | {"resources": {"concurrent_trials": concurrent}}
        )
        monkeypatch.setattr(
            "orchestrator.launching.make_task",
            lambda *_: SimpleNamespace(metric=SimpleNamespace(name="bits_per_character")),
        )
        here = [Machine(amounts={"CPU": float(concurrent), "GPU": 0.0})]
        monkeypatch.setattr(machines, "groups", lambda labels: here)
        monkeypatch.setattr(machines, "wait_to_fit", lambda *_: {})
        self.layout = Layout(folder, "stage")
        self.store, self.lines = Ends(), list[str]()
        self.cluster = Cluster(store=self.store, layout=self.layout)
        self.progress = Progress(
            say=self.lines.append,
            total_models=sum(1 + expected_trials(self.spec, each) for each in self.spec.tasks),
        )
        self.lasts, self.dies = lasts, dies
        self.site = Site(
            spec=self.spec,
            layout=self.layout,
            tracking=self.store,  # type: ignore[arg-type]
            progress=self.progress,
            available={"CPU": float(concurrent)},
        )
        self.states = [
            TaskState(
                task=each,
                data=SimpleNamespace(content_hash=each.name, folder=Path("/data")),  # type: ignore[arg-type]
                run_id="parent",
            )
            for each in self.spec.tasks
        ]
        self.trainings = Trainings(self.site, self.states, Signals())
        self.started: list[tuple[float, str, Launch]] = []
        self.running: list[tuple[float, Launch]] = []
        self.slots: list[int] = []
        self.now = 0.0

    def run(self) -> None:
        if self.trainings.begin():
            while self.step():
                pass
        self.trainings.close()

    def step(self) -> bool:
        """One event; False when everything is over."""
        launch = self.trainings.next()
        if launch is not None:
            task = launch.job["task"]["name"]
            self.started.append((self.now, task, launch))
            self.slots.append(self.trainings.slot(launch.key))
            self.running.append((self.now + self.lasts(launch), launch))
            return True
        if not self.running:
            assert self.trainings.is_over
            return False
        self.running.sort(key=lambda each: each[0])
        self.now, launch = self.running.pop(0)
        if self.dies(launch):
            self.trainings.ended(launch.key, {"failure": "its process ended unexpectedly"})
            for _ in range(2):  # as Tune does when something fails while it ends a trial
                self.trainings.over(launch, {}, "RayActorError: out of memory")
            return True
        self.cluster._finish(launch)
        report = {"ended": 1, "failure": None, "quality": 1.0}
        self.trainings.ended(launch.key, report)
        self.trainings.over(launch, report, None)
        return True

    def began(self, task: str, dense: bool = False) -> list[float]:
        """When trainings of a task started."""
        return [
            when
            for when, name, launch in self.started
            if name == task and (launch.job["dense"] is None) == dense
        ]


class Ends(Store):
    """Notes what is told of runs that fail."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}

    def writer(self, run_id: str) -> Any:
        def end(status: str, reason: str) -> None:
            assert status == "FAILED"
            self.failed[run_id] = reason

        writer = super().writer(run_id)
        writer.end = end
        return writer


def is_slow_dense(launch: Launch) -> bool:
    return launch.job["dense"] is None and launch.job["task"]["name"] == "slow"


def test_nobody_waits_for_the_dense_reference_of_another_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    played = Played(
        tmp_path, monkeypatch, lasts=lambda launch: 50.0 if is_slow_dense(launch) else 1.0
    )
    played.run()
    assert played.began("quick", dense=True) == played.began("slow", dense=True) == [0]
    assert max(played.began("quick")) < 50 == min(played.began("slow"))
    for state in played.states:
        assert len(state.trials) == len(state.plans) == expected_trials(played.spec, state.task)
        assert not state.failed
    assert played.progress.total_models == 2 + sum(len(state.plans) for state in played.states)


def test_places_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    played = Played(tmp_path, monkeypatch)
    played.run()
    by_second = Counter((when, task) for when, task, _ in played.started)
    assert {number for number in by_second.values()} == {1}, "one of each task at a time"
    # whoever starts takes the place, and the process, of the one that has ended
    assert set(played.slots) == {0, 1}
    alone = Played(tmp_path / "alone", monkeypatch, tasks=["quick"])
    alone.run()
    assert {task for _, task, _ in alone.started} == {"quick"}
    assert max(Counter(when for when, *_ in alone.started).values()) == 2
    # and each has what it would have had alone
    trials = [state.trials for state in played.states if state.task.name == "quick"]
    assert [r.config for r in trials[0]] == [r.config for r in alone.states[0].trials]


def test_the_same_command_again_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = Played(tmp_path, monkeypatch)
    first.run()
    again = Played(tmp_path, monkeypatch)
    again.store.ended |= first.store.ended
    again.run()
    assert again.started == []
    assert [s.trials for s in again.states] == [s.trials for s in first.states]


def test_a_task_without_its_dense_reference_is_told_of_at_once_and_raised_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    played = Played(tmp_path, monkeypatch, dies=is_slow_dense)
    with pytest.raises(TrialError, match="dense reference of task slow failed: RayActorError: out"):
        played.run()
    quick, slow = played.states
    assert len(quick.trials) == expected_trials(played.spec, quick.task)
    assert slow.trials == []
    (told,) = [line for line in played.lines if "the other tasks go on" in line]
    assert "the dense reference of task slow failed" in told
    assert max(played.began("quick")) > max(played.began("slow", dense=True))


def test_what_a_process_died_of_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    played = Played(
        tmp_path,
        monkeypatch,
        dies=lambda launch: (
            launch.job["dense"] is not None and launch.job["method"]["density"] == 0.3
        ),
    )
    played.run()
    for state in played.states:
        assert {trial.reason for trial in state.failed} == {"RayActorError: out of memory"}
        assert len({trial.key for trial in state.failed}) == len(state.failed)
        assert {record.target_density for record in state.trials} == {0.5}
        for trial in state.failed:
            assert played.store.failed[f"run-{trial.key}"] == trial.reason


def test_an_error_of_one_task_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is planned between two events of Tune must not raise into its loop."""
    played = Played(tmp_path, monkeypatch)
    before = played.store.model_run

    def away(key: str, parent: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> str:
        if name.startswith("slow density"):
            raise TrackingAway("MLflow does not answer")
        return before(key, parent, name, params, tags)

    monkeypatch.setattr(played.store, "model_run", away)
    with pytest.raises(TrackingAway):
        played.run()
    assert len(played.states[0].trials) == expected_trials(played.spec, played.states[0].task)
    assert played.states[1].dense is not None


def test_without_machines_all_tasks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    played = Played(tmp_path, monkeypatch)

    def none(*_: Any) -> dict[str, Any]:
        raise CampaignError("one trial needs 1 CPU, the cluster has 0")

    monkeypatch.setattr(machines, "wait_to_fit", none)
    with pytest.raises(CampaignError, match="the cluster has 0"):
        played.run()
    assert played.started == []


def test_what_trains_is_told_to_who_keeps_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[set[str]] = []
    monkeypatch.setattr(
        Housekeeping, "settle", lambda house, running, many, used: told.append(set(running))
    )
    played = Played(tmp_path, monkeypatch)
    played.run()
    keys = {launch.key for *_, launch in played.started}
    assert set().union(*told) == keys
    assert told[-1] == set()
    # of both tasks together, not only of the one whose round has begun
    dense = {launch.key for *_, launch in played.started if launch.job["dense"] is None}
    assert dense in told

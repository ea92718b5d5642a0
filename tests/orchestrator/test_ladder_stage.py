"""Which trials a ladder becomes, with everything real but Ray, MLflow and the training itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign_records import FailedTrial
from orchestrator.campaign_state import TaskState
from orchestrator.launch import Launch
from orchestrator.layout import Layout
from tests.orchestrator.test_training_stage import SPEC, Cluster, Store, train

LADDER = {
    "density": [0.1, 0.5, 0.3],
    "ladder": {"by": "trunk"},
    "tune_at": None,
    "trials_per_density": 1,
    "repeats": 1,
    "methods": {},
}


@dataclass
class Ladders(Cluster):
    """Ray's part: a trunk leaves starts, then come the branches that follow it."""

    trunk_fails: bool = False

    def run_trials(self, state: TaskState, launches: dict[str, Launch]) -> None:
        for launch in launches.values():
            if launch.is_trunk and self.trunk_fails:
                lost = [launch, *(Launch(**each) for each in launch.then)]
                self.rounds.append(list(launches.values()))
                state.failed += [
                    FailedTrial(key=each.key, task="lm", config={}, reason="diverged")
                    for each in lost
                ]
                return
        trunks = {name: each for name, each in launches.items() if each.is_trunk}
        for trunk in trunks.values():
            Path(trunk.job["ladder"]["starts"]).mkdir(parents=True, exist_ok=True)
            self.store.ended.add(trunk.key)
        follow = {
            each["key"]: Launch(**branch)
            for trunk in trunks.values()
            for branch in trunk.then
            for each in [branch["job"]]
        }
        models = {name: each for name, each in launches.items() if not each.is_trunk}
        super().run_trials(state, models | follow)
        self.rounds[-1] = list(launches.values())

    def _finish(self, launch: Launch) -> None:
        # what Cluster knows of a method are its multipliers
        launch.job["method"].setdefault("penalty_lr", None)
        super()._finish(launch)


@dataclass
class Runs(Store):
    """Takes what is written of runs whose trainings did not end well."""

    failed: dict[str, str] = field(default_factory=dict)

    def writer(self, run_id: str) -> Any:
        store = self

        class Writer:
            def end(self, status: str, reason: str) -> None:
                store.failed[run_id.removeprefix("run-")] = reason

        return Writer()


@pytest.fixture
def cluster(tmp_path: Path) -> Ladders:
    return Ladders(store=Runs(), layout=Layout(tmp_path, "stage"))


def run(cluster: Ladders, monkeypatch: pytest.MonkeyPatch, **search: Any) -> TaskState:
    monkeypatch.setitem(SPEC, "method", {"kind": "adaptive", "steps": 40})
    return train(cluster, monkeypatch, **(LADDER | search))


def test_one_trial_is_one_ladder(cluster: Ladders, monkeypatch: pytest.MonkeyPatch):
    state = run(cluster, monkeypatch)
    dense, ladder = cluster.rounds
    assert [launch.job["dense"] for launch in dense] == [None]
    (trunk,) = ladder
    assert trunk.is_trunk
    branches = [Launch(**each) for each in trunk.then]
    assert [branch.job["method"]["density"] for branch in branches] == [0.5, 0.3, 0.1]
    assert [branch.job["ladder"]["rung"] for branch in branches] == [0, 1, 2]
    assert {branch.job["ladder"]["trunk"] for branch in branches} == {trunk.key}
    assert {branch.job["ladder"]["starts"] for branch in branches} == {
        trunk.job["ladder"]["starts"]
    }
    assert [plan.key for plan in state.plans] == [branch.key for branch in branches]
    assert [record.key for record in state.trials] == [plan.key for plan in state.plans]
    # who shows runs can tell a trunk from models
    params, tags = cluster.store.runs[trunk.key]
    assert tags["kind"] == "trunk"
    assert params["ladder"]["steps"] == 20 + 12
    params, tags = cluster.store.runs[branches[0].key]
    assert (tags["kind"], params["ladder"]["steps"]) == ("trial", 20 + 10)
    # nobody needs the starts any more
    assert not Path(trunk.job["ladder"]["starts"]).exists()


def test_the_same_command_again_trains_nothing(cluster: Ladders, monkeypatch: pytest.MonkeyPatch):
    first = run(cluster, monkeypatch)
    again = run(cluster, monkeypatch)
    assert cluster.rounds == []
    assert again.trials == first.trials


def test_only_the_branch_that_is_missing_follows(cluster: Ladders, monkeypatch: pytest.MonkeyPatch):
    first = run(cluster, monkeypatch)
    cluster.layout.record(first.trials[1].key).unlink()
    again = run(cluster, monkeypatch)
    ((trunk,),) = cluster.rounds
    assert [each["job"]["key"] for each in trunk.then] == [first.trials[1].key]
    assert again.trials == first.trials


def test_branches_run_apart_when_the_trunk_is_through(
    cluster: Ladders, monkeypatch: pytest.MonkeyPatch
):
    together = run(cluster, monkeypatch)
    for record in together.trials:
        cluster.layout.record(record.key).unlink()
    apart = run(cluster, monkeypatch, ladder={"by": "trunk", "run": "apart"})
    trunks, branches = cluster.rounds
    assert [launch.is_trunk for launch in trunks] == [True]
    assert trunks[0].then == []
    assert [launch.is_trunk for launch in branches] == [False] * 3
    # where they run decides nothing
    assert [record.key for record in apart.trials] == [record.key for record in together.trials]


@pytest.mark.parametrize("where", ["together", "apart"])
def test_without_its_trunk_a_ladder_has_no_models(
    cluster: Ladders, monkeypatch: pytest.MonkeyPatch, where: str
):
    cluster.trunk_fails = True
    state = run(cluster, monkeypatch, ladder={"by": "trunk", "run": where})
    assert state.trials == []
    assert [failed.key for failed in state.failed] == [plan.key for plan in state.plans]
    assert all("diverged" in failed.reason for failed in state.failed)
    # the next command tries again
    cluster.trunk_fails = False
    assert len(run(cluster, monkeypatch, ladder={"by": "trunk", "run": where}).trials) == 3


def test_a_branch_that_fails_leaves_the_others_and_the_starts(
    cluster: Ladders, monkeypatch: pytest.MonkeyPatch
):
    cluster.fails = lambda launch: bool(launch.job["ladder"]) and launch.job["ladder"]["rung"] == 1
    state = run(cluster, monkeypatch)
    assert [record.config["density"] for record in state.trials] == [0.5, 0.1]
    assert [failed.reason for failed in state.failed] == ["diverged"]
    trunk = cluster.rounds[-1][0]
    assert Path(trunk.job["ladder"]["starts"]).exists()
    cluster.fails = lambda launch: False
    assert len(run(cluster, monkeypatch).trials) == 3


def test_draws_and_repeats_are_of_whole_ladders(cluster: Ladders, monkeypatch: pytest.MonkeyPatch):
    state = run(
        cluster,
        monkeypatch,
        trials_per_density=2,
        repeats=2,
        methods={"one": {"gate_lr": {"log_uniform": [1e-3, 1e-2]}}},
    )
    _, draws, repeats = cluster.rounds
    assert [len(trunk.then) for trunk in draws] == [3, 3]
    assert len({trunk.key for trunk in draws}) == 2
    # the same quality everywhere: the first draw is the best at each density
    assert [len(trunk.then) for trunk in repeats] == [3]
    assert {each["job"]["seed"] for each in repeats[0].then} == {8}
    assert len(state.trials) == 9

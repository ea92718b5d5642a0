"""Rounds of training with everything real but Ray, MLflow and the training itself."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowrank.export import WEIGHTS, sha256_of
from orchestrator.campaign_records import FailedTrial
from orchestrator.campaign_state import Site, TaskState
from orchestrator.earlier import EarlierTrial
from orchestrator.errors import TrialError
from orchestrator.housekeeping import Housekeeping
from orchestrator.ladder_stage import models_above
from orchestrator.launch import Launch
from orchestrator.layout import Layout
from orchestrator.progress import Progress
from orchestrator.records import RECORD, ModelRecord
from orchestrator.search import expected_trials
from orchestrator.spec import CampaignSpec
from orchestrator.stopping.notes import read_notes
from orchestrator.training_stage import TrainingStage
from orchestrator.weights import release
from tests.orchestrator.record_factory import make_dense, make_trial

SPEC = {
    "name": "stage",
    "seed": 7,
    "tasks": [
        {
            "name": "lm",
            "kind": "language-modelling",
            "data": {"source": "python-docs"},
            "model": {"type": "gpt2"},
            "dense": {"steps": 10, "learning_rate": 1e-3},
        }
    ],
    "method": {"kind": "flop-l0"},
    "search": {
        "density": [0.5, 0.3],
        "tune_at": 0.3,
        "trials_per_density": 2,
        "repeats": 2,
        "methods": {"near": {"penalty_lr": {"uniform": [0.1, 1]}}, "plain": {"repeats": 1}},
    },
}


@dataclass
class Store:
    """MLflow's part: which keys are finished, and what each run was given."""

    uri: str = "sqlite://"
    ended: set[str] = field(default_factory=set)
    told: list[tuple[str, float, str, int]] = field(default_factory=list)
    """Runs that were stopped early: run, rung, reason, step."""
    runs: dict[str, tuple[dict[str, Any], dict[str, str]]] = field(default_factory=dict)

    def finished(self, key: str) -> bool:
        return key in self.ended

    def model_run(
        self, key: str, parent: str, name: str, params: dict[str, Any], tags: dict[str, str]
    ) -> str:
        self.runs[key] = (params, tags)
        self.ended.discard(key)
        return f"run-{key}"

    def writer(self, run_id: str) -> Any:
        key = run_id.removeprefix("run-")
        return SimpleNamespace(
            points=lambda points, metric: None,
            stopped=lambda rung, reason, step: self.told.append((run_id, rung, reason, step)),
            tags=lambda tags: self.runs[key][1].update(tags),
            model=lambda record, kind: f"models:/{key}",
            record=lambda record: None,
            end=lambda status: self.ended.add(key),
        )


@dataclass
class Cluster:
    """Ray's part: trains every launch in no time, or lets it fail, or lose its files."""

    store: Store
    layout: Layout
    fails: Callable[[Launch], bool] = lambda launch: False
    vanishes: Callable[[Launch], bool] = lambda launch: False
    rungs: bool = False
    """Whether a draw reports before its end, as its `penalty_lr` is."""
    dies: Callable[[Launch], bool] = lambda launch: False
    """After the decision to stop it, before it has heard of that."""
    late: bool = False
    """Whether trainings hear of it when they are over."""
    rounds: list[list[Launch]] = field(default_factory=list)

    def run_trials(self, state: TaskState, launches: dict[str, Launch]) -> None:
        self.rounds.append(list(launches.values()))
        for launch in launches.values():
            if self.rungs and self._stops(state, launch) and not self.late:
                continue
            if self.fails(launch):
                state.failed.append(
                    FailedTrial(key=launch.job["key"], task="lm", config={}, reason="diverged")
                )
            elif not self.vanishes(launch):
                for each in [launch, *(Launch(**fields) for fields in launch.then)]:
                    self._finish(each)

    def _stops(self, state: TaskState, launch: Launch) -> bool:
        values = {"step": 500, "total_steps": 1000, "phase": "finetune"}
        values |= {"validation": launch.job["method"]["penalty_lr"]}
        assert state.rungs is not None or launch.job["dense"] is None
        found = None
        for step in (450, 500):
            if state.rungs and found is None:
                found = state.rungs.arrive(launch.key, values | {"step": step})
        if found is not None and self.dies(launch):
            raise KeyboardInterrupt
        if found is not None and not self.late:
            state.rungs.ended(launch.key, 600, recorded=False)
        return found is not None

    def _finish(self, launch: Launch) -> None:
        key, config = launch.job["key"], launch.job["method"]
        made = make_dense if launch.job["dense"] is None else make_trial
        record = made(key=key, seed=launch.job["seed"], export="/there")
        if launch.job["dense"] is not None:
            figure = {"bits_per_character": config["penalty_lr"] or 1.0}
            record = replace(
                record, config=config, validation=figure, method_name=launch.method_name
            )
        home = self.layout.model(key)
        shutil.rmtree(home, ignore_errors=True)
        record.save(home / RECORD)
        self.store.ended.add(key)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(store=Store(), layout=Layout(tmp_path, "stage"))


def train(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    earlier: Sequence[EarlierTrial] = (),
    spec: CampaignSpec | None = None,
    **search: Any,
) -> TaskState:
    spec = spec or CampaignSpec.model_validate(SPEC | {"search": {**SPEC["search"], **search}})
    spec = spec.model_copy(update={"storage": str(cluster.layout.storage)})
    cluster.rounds.clear()
    monkeypatch.setattr(
        "orchestrator.launching.make_task",
        lambda *_: SimpleNamespace(metric=SimpleNamespace(name="bits_per_character")),
    )
    lines: list[str] = []
    progress = Progress(say=lines.append, total_models=1 + expected_trials(spec, spec.tasks[0]))
    site = Site(
        spec=spec,
        layout=cluster.layout,
        tracking=cluster.store,  # type: ignore[arg-type]
        progress=progress,
        available={"CPU": 4.0},
    )
    data: Any = SimpleNamespace(content_hash="data", folder=Path("/data"))
    state = TaskState(task=spec.tasks[0], data=data, run_id="parent", earlier=list(earlier))
    for launches in TrainingStage(site).train(state):
        cluster.run_trials(state, launches)
    assert progress.total_models == 1 + len(state.plans)
    return state


def test_draws_then_what_the_best_of_them_leads_to(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    state = train(cluster, monkeypatch)
    dense, draws, rest = cluster.rounds
    assert [launch.job["dense"] for launch in dense] == [None]
    assert Counter(launch.method_name for launch in draws) == {"near": 2, "plain": 1}
    assert Counter(launch.method_name for launch in rest) == {"near": 3, "plain": 1}
    assert Counter(launch.job["seed"] for launch in rest) == {7: 2, 8: 2}
    best = min(
        launch.job["method"]["penalty_lr"] for launch in draws if launch.method_name == "near"
    )
    assert {
        launch.job["method"]["penalty_lr"] for launch in rest if launch.method_name == "near"
    } == {best}
    assert [record.key for record in state.trials] == [plan.key for plan in state.plans]
    assert all(launch.job["dense"] == "/there" for launch in draws + rest)
    assert all(launch.dense_record for launch in draws + rest)


def test_runs_can_be_grouped_in_mlflow(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    state = train(cluster, monkeypatch)
    assert state.dense is not None
    params, tags = cluster.store.runs[state.dense.key]
    assert tags["kind"] == "dense"
    assert params["seed"] == 7
    assert "method_name" not in params, "it outlives any change of method"
    by_config: dict[str, list[tuple[int, int]]] = {}
    for plan in state.plans:
        params, tags = cluster.store.runs[plan.key]
        assert params["method"] == plan.method.model_dump()
        for name in ("method_name", "density", "seed", "repeat"):
            assert tags[name] == str(params[name])
        by_config.setdefault(tags["config"], []).append((params["seed"], params["repeat"]))
    assert sorted(map(tuple, by_config.values())) == [
        ((7, 0),),
        ((7, 0),),
        ((7, 0),),
        ((7, 0), (8, 1)),
        ((7, 0), (8, 1)),
    ]


def test_runs_say_which_earlier_trial_they_come_from(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    method = {"kind": "flop-l0", "density": 0.3, "penalty_lr": 0.05 + 0.1}
    config = CampaignSpec.model_validate(SPEC | {"method": method}).method.model_dump(mode="json")
    earlier = EarlierTrial(
        campaign="first",
        run_id="abc",
        method_name="near",
        config=config,
        task_digest="",
        loss=1.0,
        excess=0.0,
    )
    state = train(cluster, monkeypatch, [earlier], warm_start=["first"])
    _, draws, rest = cluster.rounds
    warm = [launch for launch in draws if launch.warm_start]
    assert [(launch.method_name, launch.warm_start) for launch in warm] == [("near", "first/abc")]
    assert warm[0].job["method"]["penalty_lr"] == 0.15
    for plan in state.plans:
        tags = cluster.store.runs[plan.key][1]
        is_warm = plan.method_name == "near" and plan.method.penalty_lr == 0.15
        assert tags.get("warm_start.campaign") == ("first" if is_warm else None)
        assert tags.get("warm_start.run") == ("abc" if is_warm else None)
    assert "warm_start.run" in cluster.store.runs[rest[0].job["key"]][1], "its repeats have it too"


def test_the_same_command_again_trains_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    first = train(cluster, monkeypatch)
    again = train(cluster, monkeypatch)
    assert cluster.rounds == []
    assert again.trials == first.trials


def test_a_dense_reference_of_another_campaign_is_taken_over(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    first = train(cluster, monkeypatch)
    assert first.dense is not None
    home = cluster.layout.model(first.dense.key)
    (home / WEIGHTS).write_bytes(b"weights")
    whole = replace(first.dense, export_sha256=sha256_of(home / WEIGHTS))
    whole.save(home / RECORD)

    spec = CampaignSpec.model_validate(SPEC | {"name": "other"})
    other = Cluster(store=Store(), layout=replace(cluster.layout, campaign="other"))
    state = train(other, monkeypatch, spec=spec)
    assert len(other.rounds) == 2, "draws, and what the best of them leads to"
    assert state.dense is not None
    assert state.dense.export == str(other.layout.model(whole.key))
    assert state.dense.mlflow_run_id == f"run-{whole.key}"
    assert other.store.runs[whole.key][1]["taken_over_from"] == "stage"
    assert state.plans[0].key == first.plans[0].key
    # weights that are not what was exported are nobody's
    (other.layout.model(whole.key) / WEIGHTS).write_bytes(b"other")
    (home / WEIGHTS).write_bytes(b"others")
    third = Cluster(store=Store(), layout=replace(cluster.layout, campaign="third"))
    train(third, monkeypatch, spec=CampaignSpec.model_validate(SPEC | {"name": "third"}))
    assert [launch.key for launch in third.rounds[0]] == [whole.key]


@pytest.mark.parametrize("left", ["", "{", "[]", '{"key": "x"}'])
def test_a_damaged_record_costs_one_training(
    left: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    first = train(cluster, monkeypatch)
    path = cluster.layout.record(first.trials[-1].key)
    path.write_text(left)
    again = train(cluster, monkeypatch)
    assert [[launch.key for launch in each] for each in cluster.rounds] == [[path.parent.name]]
    assert again.trials == first.trials
    assert f"{path}: " in caplog.text
    assert "the model is trained again" in caplog.text


@pytest.mark.parametrize(
    ("given_up", "trained"),
    [([], [2]), ([0], [2]), ([1], [1, 2]), ([0, 1], [0, 1, 2])],
    ids=["none", "one that nobody goes on from", "the one above", "all above"],
)
def test_a_chain_goes_on_from_weights_that_are_there(
    given_up: list[int], trained: list[int], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    search = {"density": [0.5, 0.3, 0.2], "ladder": {"by": "chain"}}
    chain = CampaignSpec.model_validate(SPEC | {"method": {"kind": "adaptive"}, "search": search})
    brought: list[ModelRecord] = []
    monkeypatch.setattr(Housekeeping, "bring", lambda house, record: brought.append(record))
    first = train(cluster, monkeypatch, spec=chain)
    keys = [record.key for record in first.trials]
    assert [len(cluster.rounds[-1][0].then), brought] == [2, []]

    for place in given_up:
        release(cluster.layout.model(keys[place]), "nowhere")
    cluster.layout.record(keys[2]).unlink()
    again = train(cluster, monkeypatch, spec=chain)
    ((launch,),) = cluster.rounds
    below = [Launch(**fields).key for fields in launch.then]
    assert [launch.key, *below] == [keys[place] for place in trained]
    assert [record.key for record in again.trials] == keys
    # MLflow alone may have the weights of the one that it goes on from, and they stay until the end
    above = keys[trained[0] - 1 : trained[0]]
    assert [record.key for record in brought] == above
    assert models_above([launch]) == set(above)


def test_failures_are_not_tried_again_and_the_others_go_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.fails = lambda launch: launch.method_name == "near"
    state = train(cluster, monkeypatch)
    assert Counter(record.method_name for record in state.trials) == {"plain": 2}
    assert [trial.reason for trial in state.failed] == ["diverged"] * 2
    # the next command tries them again
    cluster.fails = lambda launch: False
    assert len(train(cluster, monkeypatch).trials) == 7


def test_a_trial_that_leaves_nothing_is_a_failure(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.vanishes = lambda launch: launch.job["seed"] == 8
    state = train(cluster, monkeypatch)
    assert [(t.reason, t.method_name, t.seed) for t in state.failed] == [
        ("no record was left", "near", 8)
    ] * 2


def test_without_a_dense_reference_the_campaign_stops(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.fails = lambda launch: launch.job["dense"] is None
    with pytest.raises(TrialError, match="dense reference of task lm failed: diverged"):
        train(cluster, monkeypatch)


STOPPING = {
    "tune_at": None,
    "trials_per_density": 4,
    "methods": {},
    "penalty_lr": {"uniform": [0.1, 1]},
    "stopping": {"rungs": [0.4], "keep": 0.5, "at_least": 3},
}


def test_draws_that_were_stopped_are_no_failures(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    cluster.rungs = True
    state = train(cluster, monkeypatch, **STOPPING)
    assert state.stopped
    assert not state.failed
    assert len(state.stopped) + len(state.trials) == len(state.plans) == 10
    for trial in state.stopped:
        assert (trial.rung, trial.step, trial.total_steps) == (0.4, 600, 1000)
        assert trial.saved_steps == 400
        assert "by rank and spread" in trial.reason
        assert trial.method_name == "flop-l0"
    # their runs say so, and all else follows from the others
    assert [run for run, *_ in cluster.store.told] == [f"run-{s.key}" for s in state.stopped]
    _, draws, rest = cluster.rounds
    assert {launch.job["seed"] for launch in draws} == {7}
    assert [launch.job["seed"] for launch in rest] == [8, 8]
    for again in rest:
        cell = [r for r in state.trials if r.target_density == again.job["method"]["density"]]
        assert again.job["method"]["penalty_lr"] == min(r.quality for r in cell)

    again = train(cluster, monkeypatch, **STOPPING)
    assert cluster.rounds == []
    assert again.stopped == state.stopped
    assert again.trials == state.trials
    assert len(cluster.store.told) == len(state.stopped), "what was recorded stays so"


def test_a_draw_is_not_trained_again_when_its_driver_died_after_the_decision(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.rungs, cluster.dies = True, lambda launch: True
    with pytest.raises(KeyboardInterrupt):
        train(cluster, monkeypatch, **STOPPING)
    assert cluster.store.told == []
    (note,) = [n for n in read_notes(cluster.layout) if n.stopped]
    assert (note.ended_at, note.recorded) == (None, False)
    cluster.dies = lambda launch: False
    state = train(cluster, monkeypatch, **STOPPING)
    trained = [launch.key for each in cluster.rounds for launch in each]
    assert note.key not in trained
    (stopped,) = [trial for trial in state.stopped if trial.key == note.key]
    # the step of the decision, for when it ended nobody knows
    assert stopped.step == 500
    assert [run for run, *_ in cluster.store.told].count(f"run-{note.key}") == 1


def test_one_that_hears_too_late_is_a_finished_trial(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.rungs = cluster.late = True
    state = train(cluster, monkeypatch, **STOPPING)
    assert any(note.stopped for note in read_notes(cluster.layout))
    assert state.stopped == []
    assert len(state.trials) == 10


def test_without_rungs_those_that_were_stopped_are_trained(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    cluster.rungs = True
    stopped = {trial.key for trial in train(cluster, monkeypatch, **STOPPING).stopped}
    cluster.rungs = False
    state = train(cluster, monkeypatch, **(STOPPING | {"stopping": None}))
    assert {launch.key for launch in cluster.rounds[0]} == stopped
    assert not state.stopped


def test_what_is_finished_stays_when_rungs_are_asked_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    before = train(cluster, monkeypatch, **(STOPPING | {"stopping": None}))
    cluster.rungs = True
    after = train(cluster, monkeypatch, **STOPPING)
    assert cluster.rounds == []
    assert after.trials == before.trials

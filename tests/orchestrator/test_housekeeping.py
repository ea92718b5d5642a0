"""A campaign within its budget: real folders, a real store with its copies, a real registry."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrank.errors import ExportError
from lowrank.export import WEIGHTS
from lowrank.hf import load_pretrained
from orchestrator.campaign_records import Choice
from orchestrator.disk import num_bytes
from orchestrator.freeable import Freeable
from orchestrator.housekeeping import Housekeeping
from orchestrator.launch import Launch
from orchestrator.layout import Layout
from orchestrator.promotion import registered_name
from orchestrator.recording import trained
from orchestrator.records import ModelRecord
from orchestrator.registry import Registry
from orchestrator.retention import Stage
from orchestrator.selection import choose
from orchestrator.spec import CampaignSpec
from orchestrator.tracking import RunWriter, Tracking, models
from orchestrator.tracking.models import GIVEN_UP, LoggedModels
from orchestrator.tracking.reading import RunReader
from orchestrator.tracking.writer import WEIGHTS_TAG
from orchestrator.weights import RELEASED, WeightsGoneError, released
from tests.orchestrator.fixtures import empty_store
from tests.orchestrator.record_factory import make_dense, make_trial
from tests.orchestrator.small import Family

OFFSETS = {"front": 0.0, "behind": 0.5, "registered": 1.0, "worst": 2.0}
"""Trials of one size, by how much worse than the first in validation."""
NOTES = 400
"""Bytes: more than the notes of four models."""


@dataclass
class House:
    """A campaign of one task whose trainings are over."""

    spec: CampaignSpec
    layout: Layout
    tracking: Tracking
    dense: ModelRecord
    trials: dict[str, ModelRecord] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def keeping(self, budget: int, **retention: Any) -> Housekeeping:
        block = {"budget": f"{max(1, budget)} B"} | retention
        spec = CampaignSpec.model_validate(self.spec.model_dump() | {"retention": block})
        house = Housekeeping(spec, self.layout, self.tracking, self.said.append)
        house.start(["data"])
        for record in (self.dense, *self.trials.values()):
            house.know(record)
        return house

    def home(self, name: str) -> Path:
        return self.layout.model(self.trials[name].key)

    def copy(self, name: str) -> Path:
        """MLflow's folder of a trial."""
        uri = self.trials[name].model_uri or ""
        return self.layout.artifacts / "campaign" / "models" / uri.removeprefix("models:/")

    @property
    def used(self) -> int:
        return Housekeeping(self.spec, self.layout, self.tracking, print).usage().total

    def whole(self) -> set[str]:
        """Names of trials whose weights are somewhere."""
        return {
            name
            for name in self.trials
            if (self.home(name) / WEIGHTS).exists() or list(self.copy(name).rglob(WEIGHTS))
        }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, lm: Family) -> House:
    """Made once, for it takes seconds to log a model."""
    layout = Layout(tmp_path_factory.mktemp("house") / "runs", "campaign")
    layout.create()
    database = layout.storage / "mlflow.db"
    shutil.copy(empty_store(tmp_path_factory.getbasetemp()), database)
    tracking = Tracking(f"sqlite:///{database}", "campaign", layout.artifacts)
    task = lm.task.model_copy(update={"name": "lm"})
    spec = CampaignSpec.model_validate(
        {"name": "campaign", "tasks": [task.model_dump()], "search": {"density": [0.5]}}
    )

    def home(record: ModelRecord, key: str, worse: float) -> ModelRecord:
        """As the trial leaves it."""
        folder = layout.model(key)
        shutil.copytree(record.export, folder)
        metric = record.metric.name
        run = tracking.model_run(key, "parent", key, {}, {})
        made = replace(
            record,
            key=key,
            task="lm",
            export=str(folder),
            validation=record.validation | {metric: record.quality + worse},
            mlflow_run_id=run,
        )
        writer = RunWriter(tracking.uri, run)
        made = replace(made, model_uri=writer.model(made, task.kind))
        writer.record(made)
        made.save(layout.record(key))
        writer.end("FINISHED")
        return made

    made = House(spec, layout, tracking, home(lm.dense, "dense", 0.0))
    made.trials = {n: home(lm.trials[0], f"key-{n}", worse) for n, worse in OFFSETS.items()}
    registry = Registry(tracking.uri)
    registry.register(registered_name(spec, "lm"), made.trials["registered"], {})
    shutil.copytree(layout.storage, layout.storage.with_name("before"))
    return made


@pytest.fixture
def house(built: House) -> Iterator[House]:
    """As it was built, in the place where it was built: MLflow keeps absolute paths."""
    before, database = built.layout.storage.with_name("before"), "mlflow.db"
    for path in built.layout.storage.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    # in place, for connections to it are open
    shutil.copyfile(before / database, built.layout.storage / database)
    shutil.copytree(
        before,
        built.layout.storage,
        ignore=shutil.ignore_patterns("mlflow.db*"),
        dirs_exist_ok=True,
    )
    yield replace(built, trials=dict(built.trials), said=[])
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def test_without_a_budget_nothing_goes(house: House):
    before = house.used
    keeping = Housekeeping(house.spec, house.layout, house.tracking, house.said.append)
    keeping.start([])
    for record in house.trials.values():
        keeping.know(record)
    keeping.settle()
    assert house.used == before
    assert not house.said
    keeping.close({})
    assert house.used == before
    assert house.said[-1].split(":")[0].endswith("on disk")


def test_a_budget_is_met_step_by_step_and_what_is_needed_stays(house: House):
    weights = (house.home("front") / WEIGHTS).stat().st_size
    used = house.used
    # what is of no use goes first
    rubbish = house.layout.root / "models" / "other.partial"
    rubbish.mkdir()
    (rubbish / "half").write_bytes(b"x" * weights)
    state = house.layout.snapshots("key-front") / "000000007"
    state.mkdir(parents=True)
    (state / "state.safetensors").write_bytes(b"x" * weights)
    house.keeping(used + 10).settle()
    assert not rubbish.exists()
    assert not state.exists()
    assert all((house.home(name) / WEIGHTS).exists() for name in house.trials)
    # then working copies, those first that are not to be kept
    house.keeping(used - weights + NOTES).settle()
    assert house.used <= used - weights + NOTES
    gone = {name for name in house.trials if not (house.home(name) / WEIGHTS).exists()}
    assert len(gone) == 1
    assert not gone & {"front", "registered"}
    house.keeping(used - 4 * weights + NOTES).settle()
    assert house.whole() == set(OFFSETS), "MLflow has all of them"
    # then those that are not to be kept, the worst first
    house.keeping(house.used - 10).settle()
    assert house.whole() == set(OFFSETS) - {"worst"}
    house.keeping(1).settle()
    assert house.whole() == {"front", "registered"}
    assert (house.layout.model("dense") / WEIGHTS).exists()
    assert "retention.budget must be at least" in house.said[-1]
    assert "got 1 B: nothing more may be given up (keep: front)" in house.said[-1]
    for name in OFFSETS:
        assert ModelRecord.load(house.layout.record(f"key-{name}")).key == f"key-{name}"
    reader = RunReader(house.tracking.uri, "campaign")
    records = {run.key: reader.record(run) for run in reader.runs()}
    assert {r.key for r in records.values() if r} == {f"key-{n}" for n in OFFSETS} | {"dense"}
    tags = {run.key: run.tags.get(WEIGHTS_TAG) for run in reader.runs()}
    assert tags["key-worst"] == GIVEN_UP
    assert tags["key-front"] is None


def test_everything_stays_if_all_is_to_be_kept(house: House):
    house.keeping(1, keep="all").settle()
    assert house.whole() == set(OFFSETS)
    assert not any((house.home(name) / WEIGHTS).exists() for name in OFFSETS)
    assert "keep: all" in house.said[-1]


def test_at_the_end_the_chosen_one_is_enough(house: House):
    keeping = house.keeping(1, keep="champion")
    keeping.settle()
    assert house.whole() == {"front", "registered"}, "nobody has chosen yet"
    choice = Choice(key="key-registered", sentence="", front=["key-front"], passed=[])
    keeping.close({"lm": choice})
    assert house.whole() == {"registered"}


def test_what_a_spec_of_before_asked_for_goes_at_the_end_alone(house: House):
    keeping = house.keeping(1)
    left = house.trials.pop("worst")
    keeping = house.keeping(1)
    keeping.settle()
    assert (house.layout.model(left.key) / WEIGHTS).exists()
    keeping.close({})
    assert not (house.layout.model(left.key) / WEIGHTS).exists()
    assert released(house.layout.model(left.key)) is not None


def test_what_trains_keeps_its_states_and_gets_its_room(house: House):
    for key in ("running", "failed", "stopped"):
        state = house.layout.snapshots(key) / "000000001"
        state.mkdir(parents=True)
        (state / "state.safetensors").write_bytes(b"x" * 100)
        (house.layout.train / key).mkdir()
        (house.layout.train / key / "ray.json").write_bytes(b"x" * 100)
    keeping = house.keeping(house.used + 1000)
    keeping.ended("failed", {"ended": 1, "failure": "no"})
    keeping.settle(running=["running"], side_by_side=1)
    assert "freed" in house.said[-1], "there is room for what is there, and not for a training"
    assert (house.layout.train / "running").exists()
    assert not (house.layout.train / "failed").exists()
    left = {path.name for path in (house.layout.root / "snapshots").iterdir()}
    # one that was stopped goes on from there, in this run or in the next
    assert left == {"running", "stopped"}
    house.keeping(1).close({})
    assert not list((house.layout.root / "snapshots").iterdir())


def test_weights_come_back_from_mlflow(house: House):
    keeping, record = house.keeping(1, keep="all"), house.trials["behind"]
    keeping.settle()
    with pytest.raises((ExportError, OSError)):
        load_pretrained(record.export)
    keeping.bring(record)
    load_pretrained(record.export)
    assert released(house.home("behind")) is None
    assert not list((house.layout.root / "models").glob("*.partial"))
    keeping.bring(record)
    # not those of another model
    keeping.settle()
    with pytest.raises(WeightsGoneError, match="holds other weights than its record"):
        keeping.bring(replace(record, export_sha256="0" * 64))
    assert not (house.home("behind") / WEIGHTS).exists()


def test_a_model_whose_weights_were_given_up_says_so_and_is_not_chosen(house: House):
    keeping, record = house.keeping(1), house.trials["worst"]
    keeping.settle()
    assert keeping.is_gone(record.key)
    assert not keeping.is_gone("key-front")
    with pytest.raises(WeightsGoneError, match=r"key-worst were given up .* retention.budget"):
        keeping.bring(record)
    select = house.spec.select.model_copy(update={"epsilon": 0.9, "then": "smallest"})
    trials = list(house.trials.values())
    gone = {each.key for each in trials if keeping.is_gone(each.key)}
    choice = choose(trials, house.dense, select, gone)
    assert choice.key not in gone
    assert "Left out: 2 models whose weights were given up" in choice.sentence
    assert choose(trials, house.dense, house.spec.select, gone).sentence.count("Left out") == 0


def test_one_that_is_trained_again_is_logged_again(house: House, lm: Family):
    house.keeping(1).settle()
    record = house.trials["worst"]
    run_id = house.tracking.model_run(record.key, "parent", record.key, {}, {})
    assert run_id == record.mlflow_run_id
    assert WEIGHTS_TAG not in house.tracking.client.get_run(run_id).data.tags
    shutil.copy(Path(lm.trials[0].export) / WEIGHTS, house.home("worst") / WEIGHTS)
    places, modules = list(sys.path), {name for name in sys.modules if "code_model" in name}
    uri = RunWriter(house.tracking.uri, run_id).model(record, "")
    assert uri != record.model_uri
    # each import of a process that logs many models would take longer than the one before
    assert sys.path == places
    assert {name for name in sys.modules if "code_model" in name} == modules
    shutil.rmtree(house.home("worst"))
    Path(house.home("worst")).mkdir()
    (house.home("worst") / RELEASED).write_text('{"weights": "mlflow", "num_bytes": 1}')
    house.keeping(10**12).bring(replace(record, model_uri=uri))
    assert (house.home("worst") / WEIGHTS).exists()


def launch_of(house: House, name: str) -> Launch:
    return Launch(
        job={"key": f"key-{name}"},
        storage=str(house.layout.storage),
        campaign="campaign",
        resources={},
        tracking_uri=house.tracking.uri,
        run_id="",
        metric="",
    )


def test_a_model_without_weights_is_not_written_to_another_store(house: House):
    """Its run is FINISHED, so nobody asks; if MLflow has lost it, there is nothing to log."""
    assert trained(launch_of(house, "front")) is not None
    house.keeping(1, keep="all").settle()
    assert trained(launch_of(house, "front")) is None


class KilledError(BaseException):
    """Where a process dies, nothing that comes after is done, and nothing is tidied up."""


def dies(*_: Any, **__: Any) -> None:
    raise KilledError


def dies_at_weights(path: Path, missing_ok: bool = False) -> None:
    if path.name == WEIGHTS:
        raise KilledError
    path.rename(path.with_suffix(".gone"))


@pytest.mark.parametrize(
    ("owner", "name", "death"),
    [
        (Path, "unlink", dies_at_weights),
        (LoggedModels, "give_up", dies),
        (models, "shutil", SimpleNamespace(rmtree=dies)),
    ],
    ids=["noted", "weights gone", "MLflow told"],
)
def test_what_was_killed_while_it_gave_a_model_up_is_finished_by_the_next_start(
    house: House, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, death: Any
):
    copies = 4 * (house.home("front") / WEIGHTS).stat().st_size - NOTES
    house.keeping(house.used - copies).settle()
    if owner is Path:
        # one that still has its working copy
        house.keeping(10**12).bring(house.trials["worst"])
        monkeypatch.setattr(LoggedModels, "is_whole", lambda *_: False)
    keeping = house.keeping(house.used - 10)
    monkeypatch.setattr(owner, name, death)
    with pytest.raises(KilledError):
        keeping.settle()
    monkeypatch.undo()
    assert "worst" in house.whole()
    again = house.keeping(10**12)
    assert again.is_gone("key-worst")
    assert house.whole() == set(OFFSETS) - {"worst"}
    assert num_bytes(house.copy("worst")) == 0
    assert ModelRecord.load(house.layout.record("key-worst")) == house.trials["worst"]


def test_what_was_killed_while_it_released_a_copy_is_simply_here(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    keeping = house.keeping(house.used - 10)
    monkeypatch.setattr(Path, "unlink", dies_at_weights)
    with pytest.raises(KilledError):
        keeping.settle()
    monkeypatch.undo()
    assert len(list((house.layout.root / "models").glob(f"*/{RELEASED}"))) == 1
    house.keeping(10**12)
    assert not list((house.layout.root / "models").glob(f"*/{RELEASED}"))
    assert all(trained(launch_of(house, name)) for name in OFFSETS)


class Copies:
    """MLflow's copies, all whole and all on this disk, in folders that a test has made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def is_whole(self, record: ModelRecord) -> bool:
        return True

    def folder(self, record: ModelRecord) -> Path:
        return self._folder / record.key


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Layout, Copies]]:
    """Ten folders with something in them."""
    folder = tmp_path_factory.mktemp("models")
    layout = Layout(folder, "campaign")
    for number in range(10):
        for home in (layout.model(str(number)), folder / "copies" / str(number)):
            home.mkdir(parents=True)
            (home / WEIGHTS).write_bytes(b"x" * 10)
    yield layout, Copies(folder / "copies")
    shutil.rmtree(folder)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    figures=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=9),
    registered=st.sets(st.integers(1, 9)),
    chosen=st.none() | st.integers(1, 9),
    keep=st.sampled_from(["all", "front", "champion"]),
    epsilon=st.sampled_from([0.0, 0.3]),
)
def test_neither_champion_nor_front_nor_teacher_is_ever_freed(
    stored: tuple[Layout, Copies],
    monkeypatch: pytest.MonkeyPatch,
    figures: list[tuple[int, int]],
    registered: set[int],
    chosen: int | None,
    keep: str,
    epsilon: float,
):
    layout, copies = stored
    dense = make_dense(key="0")
    records = {"0": dense}
    for number, (loss, size) in enumerate(figures, start=1):
        record = make_trial(key=str(number), export=str(layout.model(str(number))))
        records[str(number)] = replace(
            record,
            task=dense.task,
            validation={dense.metric.name: float(loss)},
            size=replace(record.size, num_parameters=size * 1000),
            model_uri=f"models:/m-{number}",
            speed=[],
        )
    spec = CampaignSpec.model_validate(
        {
            "name": "campaign",
            "tasks": [
                {
                    "name": dense.task,
                    "kind": "language-modelling",
                    "data": {"source": "python-docs"},
                    "model": {"type": "gpt2"},
                    "dense": {"steps": 10, "learning_rate": 1e-3},
                }
            ],
            "search": {"density": [0.5]},
            "select": {"epsilon": epsilon},
            "retention": {"budget": "1 B", "keep": keep},
        }
    )
    choice = None
    if chosen is not None and str(chosen) in records:
        choice = {dense.task: Choice(key=str(chosen), sentence="", front=[], passed=[])}
    files = Freeable(
        spec=spec, layout=layout, tracking_uri="", records=dict(records), choices=choice
    )
    sources = {f"models:/m-{number}" for number in registered}
    monkeypatch.setattr(Freeable, "_registered", lambda self: sources)
    given_up = {i.key for i in files.items(copies) if i.stage is Stage.WEIGHTS}  # type: ignore[arg-type]
    trials = [record for record in records.values() if record.config]
    front = set(choose(trials, dense, spec.select).front)
    picked = choose(trials, dense, spec.select).key
    assert "0" not in given_up
    assert not given_up & {str(number) for number in registered}
    assert str(chosen) not in given_up or choice is None
    if keep == "all":
        assert not given_up
    elif keep == "front" or choice is None:
        assert not given_up & (front | {picked})
        assert given_up | front | {str(n) for n in registered} >= {
            r.key for r in trials if epsilon == 0 and r.key not in (str(chosen) if choice else "")
        }
    released_too = {i.key for i in files.items(copies) if i.stage is Stage.WORKING_COPY}  # type: ignore[arg-type]
    assert "0" not in released_too
    assert (layout.model("1") / RELEASED).exists() is False

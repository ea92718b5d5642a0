"""How often a campaign within a budget walks through all its files, and that the budget holds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowrank.export import WEIGHTS
from orchestrator import disk
from orchestrator.disk import Disk, usage
from orchestrator.housekeeping import SPARE, Housekeeping
from orchestrator.layout import Layout
from orchestrator.spec import CampaignSpec
from orchestrator.tracking import Tracking
from tests.orchestrator.fixtures import empty_store
from tests.orchestrator.record_factory import make_dense, make_trial

NOTE = 100
"""Bytes: more than the note that a model leaves whose weights go."""


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """A real store; the models below were never logged in it."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store(tmp_path_factory.getbasetemp()), folder / "mlflow.db")
    return Tracking(f"sqlite:///{folder / 'mlflow.db'}", "campaign", folder / "artifacts")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that each walk found."""
    found: list[int] = []

    def counted(*arguments: object) -> disk.Usage:
        one = usage(*arguments)  # type: ignore[arg-type]
        found.append(one.total)
        return one

    monkeypatch.setattr(disk, "usage", counted)
    monkeypatch.setattr(disk, "BESIDE", NOTE)
    return found


class Campaign:
    """A dense reference, and trials that end one after the other."""

    def __init__(self, root: Path, tracking: Tracking, budget: int, ladder: bool = False) -> None:
        self.layout, self.budget = Layout(root / "runs", "campaign"), budget
        self.layout.create()
        task = {
            "name": "docs-lm",
            "kind": "language-modelling",
            "data": {"source": "python-docs"},
            "model": {"type": "gpt2"},
            "dense": {"steps": 10, "learning_rate": 1e-3},
        }
        search = {"density": [0.5, 0.3] if ladder else [0.5]} | ({"ladder": True} if ladder else {})
        block = {
            "name": "campaign",
            "tasks": [task],
            "search": search,
            "retention": {"budget": f"{budget} B"},
        }
        self.said: list[str] = []
        self.house = Housekeeping(
            CampaignSpec.model_validate(block), self.layout, tracking, self.said.append
        )
        self.house.start([])
        self.house.know(make_dense(task="docs-lm"))

    @property
    def used(self) -> int:
        return usage(self.layout, []).total

    def end(self, number: int, num_bytes: int, state: int = 0) -> None:
        """One more, worse than all before and no smaller: none but the first is on the front."""
        record = make_trial(task="docs-lm", key=f"{number:04}", model_uri=None)
        home = self.layout.model(record.key)
        home.mkdir(parents=True)
        (home / WEIGHTS).write_bytes(b"x" * num_bytes)
        worse = {record.metric.name: 3.0 + number / 1000}
        record = replace(record, export=str(home), mlflow_run_id=None, validation=worse)
        if state:
            folder = self.layout.snapshots(record.key)
            folder.mkdir(parents=True)
            (folder / "state.safetensors").write_bytes(b"x" * state)
        self.house.know(record)
        self.house.settle()


def test_with_room_for_all_nobody_looks_twice(tmp_path: Path, tracking: Tracking, looks: list[int]):
    campaign = Campaign(tmp_path, tracking, 10**6)
    for number in range(100):
        campaign.end(number, 1000)
    assert len(looks) == 1
    campaign.house.close({})
    assert len(looks) == 2, "what it says at the end is looked up"
    assert not any("freed" in line for line in campaign.said)


def test_within_a_tight_budget_a_look_serves_many_models(
    tmp_path: Path, tracking: Tracking, looks: list[int]
):
    """Nobody can say without a look that there is room, once there is none."""
    campaign = Campaign(tmp_path, tracking, 200_000)
    most = []
    for number in range(400):
        campaign.end(number, 1000)
        most.append(campaign.used)
    freed = sum("freed" in line for line in campaign.said)
    # from 200 models on, of which each needs room for itself and as much for a copy
    assert freed >= 10
    assert max(most) <= campaign.budget
    # each of the times that something goes: before, after, and when nothing is left to do
    assert len(looks) <= 4 * freed + 40 < 300
    assert campaign.used > campaign.budget * (1 - 2 / SPARE), "no more than it has to"
    assert (campaign.layout.model("0000") / WEIGHTS).exists()


def test_few_models_give_up_no_more_than_they_must(
    tmp_path: Path, tracking: Tracking, looks: list[int]
):
    campaign = Campaign(tmp_path, tracking, 10_500)
    for number in range(SPARE - 2):
        campaign.end(number, 1000)
        assert campaign.used <= 10_500
    assert campaign.used > 10_500 - 1000 - NOTE


def test_a_ladder_is_looked_at_each_time(tmp_path: Path, tracking: Tracking, looks: list[int]):
    campaign = Campaign(tmp_path, tracking, 10**6, ladder=True)
    for number in range(5):
        campaign.end(number, 1000)
    assert len(looks) == 5


def test_what_was_written_is_never_more_than_what_is_said(
    tmp_path: Path, tracking: Tracking, looks: list[int]
):
    campaign = Campaign(tmp_path, tracking, 10**9)
    held = Disk(campaign.layout)
    assert held.most == campaign.used
    for number in range(20):
        campaign.end(number, 1000 * number, state=500 if number % 3 else 0)
        held.wrote(f"{number:04}")
        assert held.most >= campaign.used
    before = held.most
    assert held.look().total == campaign.used < before
    assert held.most == campaign.used


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=40),
    states=st.lists(st.sampled_from([0, 0, 0, 3000]), min_size=40, max_size=40),
    budget=st.integers(1, 60_000),
)
def test_the_budget_holds_or_nothing_more_may_go(
    tmp_path_factory: pytest.TempPathFactory,
    tracking: Tracking,
    looks: list[int],
    sizes: list[int],
    states: list[int],
    budget: int,
):
    campaign = Campaign(tmp_path_factory.mktemp("campaign"), tracking, budget)
    for number, (size, state) in enumerate(zip(sizes, states, strict=False)):
        campaign.end(number, size, state)
        homes = [campaign.layout.model(f"{n:04}") / WEIGHTS for n in range(1, number + 1)]
        left = sum(home.stat().st_size for home in homes if home.exists())
        left += sum(path.stat().st_size for path in campaign.layout.root.rglob("state.*"))
        assert campaign.used <= budget or left == 0

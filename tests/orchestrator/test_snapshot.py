"""Training states on disk: whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orchestrator.errors import StorageError
from orchestrator.snapshot import KEPT, Snapshot, SnapshotError, SnapshotStore


def state(value: float) -> Snapshot:
    return Snapshot(tensors={"model.a": torch.full((3,), value)}, facts={"step": value})


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "states")


def test_a_state_comes_back(store: SnapshotStore):
    assert store.last_whole() is None
    store.save(7, state(0.5))
    assert store.last_whole() == 7
    found = store.load(7)
    assert found.facts == {"step": 0.5}
    assert torch.equal(found.part("model.")["a"], torch.full((3,), 0.5))
    assert found.part("pruner.") == {}


def test_the_last_ones_stay(store: SnapshotStore):
    for step in (9, 10, 100, 20):
        store.save(step, state(step))
    assert store.steps() == [100, 20]
    assert len(store.steps()) == KEPT


def test_a_step_may_be_saved_again(store: SnapshotStore):
    store.save(5, state(1))
    store.save(5, state(2))
    assert store.load(5).facts == {"step": 2}


def test_what_was_not_finished_is_not_there(store: SnapshotStore, tmp_path: Path):
    store.save(5, state(1))
    partial = tmp_path / "states" / ".000000006.partial"
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    assert store.steps() == [5]
    store.save(6, state(2))
    assert store.load(6).facts == {"step": 2}


@pytest.mark.parametrize("damage", ["cut", "changed", "no tensors", "no facts", "no json"])
def test_damage_is_noticed_and_the_state_before_is_used(
    damage: str, store: SnapshotStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store.save(1, state(1))
    store.save(2, state(2))
    folder = tmp_path / "states" / "000000002"
    tensors, facts = folder / "state.safetensors", folder / "state.json"
    whole = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(whole[:-1])
    elif damage == "changed":
        tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "no json":
        facts.write_text(facts.read_text()[:-5])
    else:
        (tensors if damage == "no tensors" else facts).unlink()
    with pytest.raises(SnapshotError, match="000000002"):
        store.load(2)
    assert store.last_whole() == 1
    assert "the state before it is used" in caplog.text


def test_nothing_is_lost_when_the_disk_is_full(
    store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.save(1, state(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.snapshot.save_file", full)
    with pytest.raises(StorageError, match="no space left on the device"):
        store.save(2, state(2))
    assert store.steps() == [1]
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["000000001"]


def test_facts_are_json_and_nothing_is_pickled(store: SnapshotStore, tmp_path: Path):
    store.save(1, state(1))
    folder = tmp_path / "states" / "000000001"
    assert {path.name for path in folder.iterdir()} == {"state.safetensors", "state.json"}
    assert set(json.loads((folder / "state.json").read_text())) == {
        "sha256",
        "facts_sha256",
        "facts",
    }


def test_a_finished_training_leaves_none(store: SnapshotStore, tmp_path: Path):
    store.save(1, state(1))
    store.clear()
    assert not (tmp_path / "states").exists()
    assert store.last_whole() is None

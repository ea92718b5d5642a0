"""How often a training is begun again elsewhere; that it goes on is tested with a cluster."""

from __future__ import annotations

from pathlib import Path

import torch

from orchestrator.snapshot import Snapshot, SnapshotStore
from orchestrator.train_run import MAX_IN_VAIN, _Attempts


def advance(states: SnapshotStore, step: int) -> None:
    states.save(step, Snapshot(tensors={"w": torch.zeros(1)}, facts={}))


def test_what_never_gets_anywhere_ends_soon(tmp_path: Path):
    attempts = _Attempts(SnapshotStore(tmp_path))
    assert [attempts.another() for _ in range(MAX_IN_VAIN)] == [True] * MAX_IN_VAIN
    assert not attempts.another()


def test_what_gets_on_goes_on(tmp_path: Path):
    states = SnapshotStore(tmp_path)
    attempts = _Attempts(states)
    for step in range(1, 40):
        advance(states, step)
        # each time as often in vain as is allowed, and then a step further
        assert all(attempts.another() for _ in range(MAX_IN_VAIN))
    assert not attempts.another()


def test_a_state_of_an_earlier_campaign_is_no_progress(tmp_path: Path):
    states = SnapshotStore(tmp_path)
    advance(states, 50)
    attempts = _Attempts(states)
    assert [attempts.another() for _ in range(3)] == [True, True, False]


def test_a_damaged_state_that_was_passed_over_is_no_progress(tmp_path: Path):
    states = SnapshotStore(tmp_path)
    advance(states, 50)
    attempts = _Attempts(states)
    assert attempts.another()
    states.clear()
    advance(states, 20)
    assert attempts.another()
    assert not attempts.another()

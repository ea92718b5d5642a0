"""Folders that several files of tests read or damage."""

from __future__ import annotations

import pytest

from lowrank import (
    LowRankLinear,
    save,
)
from tests.lowrank import mlp


@pytest.fixture
def saved(tmp_path):
    """One layer kept dense, two of rank 2 and 3; and the folder."""
    small = mlp(0).eval()
    small[2], small[4] = LowRankLinear(12, 12, rank=2), LowRankLinear(12, 12, rank=3)
    return small, save(small, tmp_path / "model")

"""What fits a cluster, by its resources alone; real nodes come and go in tests/integration."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import CampaignError
from orchestrator.machines import CAPACITY_ENV, capacity
from orchestrator.room import DRIVER, check_fits, concurrent_trials
from orchestrator.spec import Resources

NODE = {"CPU": 8.0, "GPU": 2.0, DRIVER: 64.0, "memory": 1e10}


@pytest.mark.parametrize(
    "resources",
    [
        {"workers": 8},
        {"workers": 2, "gpus_per_worker": 1},
        {"workers": 4, "cpus_per_worker": 2},
        {"workers": 1, "cpus_per_worker": 0.5, "gpus_per_worker": 0.5},
    ],
)
def test_what_fits_passes(resources: dict[str, Any]):
    check_fits(Resources(**resources), NODE, "lm")


@pytest.mark.parametrize(
    ("resources", "node", "message"),
    [
        ({"workers": 9}, NODE, r"task lm: one trial needs 9 CPU, the cluster has 8 \(9 workers\)"),
        ({"cpus_per_worker": 8.5}, NODE, r"needs 8.5 CPU, the cluster has 8 \(1 workers\)"),
        ({"gpus_per_worker": 1}, {"CPU": 8.0, DRIVER: 1.0}, r"needs 1 GPU, the cluster has 0"),
        ({}, {"CPU": 8.0}, r"needs 1 driver, the cluster has 0; start the head node with --resou"),
    ],
)
def test_what_can_never_start_is_refused(
    resources: dict[str, Any], node: dict[str, Any], message: str
):
    with pytest.raises(CampaignError, match=message):
        check_fits(Resources(**resources), node, "lm")


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"concurrent_trials": 3}, 3),
        ({"concurrent_trials": 30}, 8),
        ({"concurrent_trials": 30, "workers": 3}, 2),
        ({"concurrent_trials": 30, "gpus_per_worker": 1}, 2),
        ({"concurrent_trials": 30, "gpus_per_worker": 0.5}, 4),
        ({"concurrent_trials": 30, "workers": 8, "cpus_per_worker": 4}, 1),
    ],
)
def test_trials_side_by_side(resources: dict[str, Any], expected: int):
    assert concurrent_trials(Resources(**resources), NODE) == expected


def test_a_cluster_may_be_told_to_grow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CAPACITY_ENV, raising=False)
    assert capacity(NODE) == NODE
    monkeypatch.setenv(CAPACITY_ENV, '{"CPU": 4, "GPU": 6.5}')
    grown = capacity(NODE)
    # what is there already counts, however little was told
    assert grown == NODE | {"CPU": 8.0, "GPU": 6.5}
    check_fits(Resources(workers=6, gpus_per_worker=1), grown, "lm")
    assert concurrent_trials(Resources(concurrent_trials=9, gpus_per_worker=1), grown) == 6
    with pytest.raises(CampaignError, match=r"needs 8 GPU, the cluster has 6\.5"):
        check_fits(Resources(workers=8, gpus_per_worker=1), grown, "lm")


@pytest.mark.parametrize(
    "text", ["8", "[]", "{CPU: 8}", '{"CPU": "8"}', '{"CPU": -1}', '{"CPU": NaN}']
)
def test_how_far_must_be_said_in_numbers(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CAPACITY_ENV, text)
    with pytest.raises(CampaignError, match="LOWRANK_CLUSTER_CAPACITY must be like") as caught:
        capacity(NODE)
    assert text in str(caught.value)

"""What a campaign will hold, and what goes first: figures, and what is really written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import resume
from orchestrator.disk import num_bytes
from orchestrator.retention import (
    BYTES,
    FILES,
    BudgetError,
    Item,
    Stage,
    check_budget,
    expected_bytes,
    model_bytes,
    of_all,
    parse_amount,
    state_bytes,
    to_free,
    training_bytes,
)
from orchestrator.spec import CampaignSpec
from orchestrator.spec_retention import RetentionSpec
from tests.orchestrator.small import Family, docs_task, make_job, method, train_to

items = st.lists(
    st.builds(
        Item,
        stage=st.sampled_from(Stage),
        key=st.uuids().map(str),
        num_bytes=st.integers(0, 50),
        rank=st.integers(-2, 2).map(float),
    ),
    max_size=12,
)


@given(items, st.integers(0, 300), st.integers(0, 300))
def test_no_more_goes_than_is_needed_and_no_later_stage_before_its_time(
    found: list[Item], used: int, target: int
):
    chosen = to_free(found, used, target)
    left = used - sum(item.num_bytes for item in chosen)
    assert len({item.key for item in chosen}) == len(chosen)
    assert set(chosen) <= set(found)
    kept = [item for item in found if item not in chosen and item.num_bytes]
    if kept:
        # something stays only because the target is met
        assert left <= target
        assert all(stays.stage >= item.stage for item in chosen for stays in kept)
    if chosen:
        assert left + chosen[-1].num_bytes > target, "the last one was not needed"
    else:
        assert used <= target or not kept


def test_within_a_stage_the_greatest_rank_goes_first_and_then_the_largest():
    found = [
        Item(stage=Stage.WEIGHTS, key="good", num_bytes=9, rank=1.0),
        Item(stage=Stage.WEIGHTS, key="bad", num_bytes=1, rank=2.0),
        Item(stage=Stage.WEIGHTS, key="large", num_bytes=5, rank=2.0),
        Item(stage=Stage.LEFTOVER, key="dust", num_bytes=1),
    ]
    order = [item.key for item in to_free(found, 100, 0)]
    assert order == ["dust", "large", "bad", "good"]


@pytest.mark.parametrize(
    ("text", "amount"),
    [("20 GB", 20 * 10**9), ("1.5MiB", 1572864), (" 2 TB ", 2 * 10**12), ("512 kB", 512000)],
)
def test_amounts_are_read_in_the_units_of_disks(text: str, amount: int):
    assert parse_amount(text) == amount
    assert RetentionSpec(budget=text).num_bytes == amount


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("20", "must be a number and one of B, kB, MB"),
        ("20 Gb", "got 'Gb', did you mean 'GB'?"),
        ("20 %", "such as `20 GB`, got '20 %'"),
        ("-1 GB", "got '-1 GB'"),
        ("0 GB", "must be more than nothing, got '0 GB'"),
        ("1e400 GB", "got '1e400 GB'"),
        ("9" * 500 + " GB", "must be a number"),
    ],
)
def test_other_amounts_are_refused_with_the_rule(text: str, message: str):
    with pytest.raises(ValueError, match=r"must be|got") as caught:
        parse_amount(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, lm: Family) -> dict[str, Any]:
    """A dense model of some 800,000 parameters and its compression, with states of both."""
    folder = tmp_path_factory.mktemp("wide")
    config = lm.task.model.config | {"n_embd": 128, "n_layer": 4}
    model = lm.task.model.model_copy(update={"config": config})
    task = lm.task.model_copy(
        update={"model": model, "dense": lm.task.dense.model_copy(update={"steps": 12})}
    )
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "INTERVAL_S", 0.0)
        patch.setattr(resume, "LEAST_APART", 0.0)
        for name, dense in (("dense", None), ("small", folder / "dense")):
            states = {"snapshots": str(folder / f"states-{name}"), "num_snapshots": 3}
            parent = None if dense is None else str(dense)
            job = make_job(task, lm.data, method(density=0.5, steps=24), parent, **states)
            found[name] = train_to(folder / name, job), folder / name, folder / f"states-{name}"
    return found


def test_models_are_as_large_as_expected(wide: dict[str, Any]):
    size = wide["dense"][0].size
    for name, density in (("dense", 1.0), ("small", 0.5)):
        home = num_bytes(wide[name][1])
        expected = model_bytes(
            size.num_parameters, size.num_prunable, density, artifacts_here=False
        )
        assert 0 <= expected - home <= FILES


def test_states_are_no_larger_than_expected_and_no_more_than_asked_for(wide: dict[str, Any]):
    size = wide["dense"][0].size
    expected = state_bytes(size.num_parameters, size.num_prunable)
    largest = []
    for name, kept in (("dense", 2), ("small", 3)):
        states = list(wide[name][2].iterdir())
        assert len(states) == kept
        largest.append(max(map(num_bytes, states)))
    assert 0.6 * expected < max(largest) <= 1.02 * expected


def test_a_campaign_holds_the_sum_of_its_tasks_and_one_training_at_a_time():
    one = expected_bytes(
        parameters=10**6, prunable=8 * 10**5, densities=[0.5, 0.25], concurrent=2, data_bytes=7
    )
    assert one.dense == model_bytes(10**6, 8 * 10**5, 1.0)
    assert one.models == sum(model_bytes(10**6, 8 * 10**5, d) for d in (0.5, 0.25))
    assert one.training == 2 * training_bytes(10**6, 8 * 10**5, 2)
    assert one.least < one.most
    both = of_all([one, one])
    assert (both.data, both.dense, both.models) == (14, 2 * one.dense, 2 * one.models)
    assert (both.training, both.single) == (one.training, one.single)


def test_without_mlflows_copies_it_is_half_and_with_fewer_states_less():
    args = {"parameters": 10**8, "prunable": 9 * 10**7, "densities": [0.5]}
    here, elsewhere = (expected_bytes(**args, artifacts_here=a) for a in (True, False))
    assert here.models == pytest.approx(2 * elsewhere.models, rel=0.01)
    fewer = expected_bytes(**args, snapshots=1)
    assert here.training - fewer.training == state_bytes(10**8, 9 * 10**7)
    assert state_bytes(10**8, 9 * 10**7) == BYTES * 57 * 10**7


def test_a_budget_that_one_trial_would_break_is_refused_with_both_figures():
    expected = expected_bytes(parameters=10**8, prunable=9 * 10**7, densities=[0.5])
    check_budget(None, expected)
    check_budget(expected.least, expected)
    with pytest.raises(BudgetError, match=r"must be at least \d+\.?\d* GB, got 5\.00 GB: prepared"):
        check_budget(5 * 10**9, expected)
    assert BudgetError("x").exit_code == 2


def test_how_much_may_be_held_decides_no_result(tmp_path: Path):
    spec = {"name": "c", "tasks": [docs_task("lm", 3)], "search": {"density": [0.5]}}
    plain = CampaignSpec.model_validate(spec)
    tight = CampaignSpec.model_validate(spec | {"retention": {"budget": "1 GB", "snapshots": 1}})
    assert plain.digest() == tight.digest()
    assert plain.retention.num_bytes is None
    with pytest.raises(ValueError, match="snapshots"):
        CampaignSpec.model_validate(spec | {"retention": {"snapshots": 0}})

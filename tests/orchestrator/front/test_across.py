"""Regret and rank over several tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.campaign_records import Choice, TaskResult
from orchestrator.front.across import across_tasks, compare
from orchestrator.records import ModelRecord
from tests.orchestrator.record_factory import make_dense, make_task_result, make_trial

NONE = Choice(key=None, sentence="", front=[], passed=[])


def task(name: str, drops: dict[tuple[str, float], float], seeds: int = 1) -> TaskResult:
    """A task of accuracies; per method and penalty_lr what it loses."""
    dense = make_dense("classification", name)

    def trial(method: str, rate: float, drop: float, seed: int) -> ModelRecord:
        # seeds differ evenly around the drop
        quality = dense.quality * (1 - drop + 0.01 * (seed - (seeds - 1) / 2))
        return replace(
            make_trial(0.3, rate, "classification", name),
            key=f"{name}{method}{rate}{seed}",
            method_name=method,
            seed=seed,
            validation={"accuracy": quality},
        )

    trials = [
        trial(method, rate, drop, seed)
        for (method, rate), drop in drops.items()
        for seed in range(seeds)
    ]
    return make_task_result(trials, dense, NONE, "classification", failed=[])


def test_settings_that_ran_everywhere_are_compared() -> None:
    found = across_tasks(
        [
            task("one", {("a", 0.1): 0.02, ("a", 0.2): 0.05, ("b", 0.1): 0.01}, seeds=3),
            task("two", {("a", 0.1): 0.03, ("b", 0.1): 0.08, ("b", 0.2): 0.01}),
        ]
    )
    assert [each.name for each in found] == [
        "a, density 0.3, penalty_lr 0.1",
        "b, density 0.3, penalty_lr 0.1",
    ]
    first, second = found
    assert first.drops == pytest.approx({"one": 0.02, "two": 0.03})
    assert (first.worst_task, second.worst_task) == ("one", "two")
    assert first.worst_regret == pytest.approx(0.01)
    assert second.worst_regret == pytest.approx(0.05)
    assert first.average_rank == second.average_rank == 1.5


def test_else_each_method_counts_with_its_best_on_each_task() -> None:
    found = across_tasks(
        [
            task("one", {("a", 0.1): 0.02, ("a", 0.2): 0.05, ("b", 0.3): 0.01}),
            task("two", {("a", 0.4): 0.03, ("b", 0.5): 0.04, ("c", 0.5): 0.0}),
        ]
    )
    assert [each.name for each in found] == ["a, tuned on each task", "b, tuned on each task"]
    assert found[0].drops == pytest.approx({"one": 0.02, "two": 0.03})
    assert [each.worst_regret for each in found] == pytest.approx([0.01, 0.01])


def test_one_task_or_one_setting_compares_with_nothing() -> None:
    alone = task("one", {("a", 0.1): 0.02, ("b", 0.1): 0.01})
    assert across_tasks([alone]) == []
    assert across_tasks([alone, task("two", {("a", 0.1): 0.02})]) == []


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=5))
def test_regret_and_rank_agree_with_counting(rows: list[list[int]]) -> None:
    drops = {str(i): dict(zip("xyz", map(float, row), strict=True)) for i, row in enumerate(rows)}
    for each in compare(drops, 0.5):
        row = rows[int(each.name)]
        regrets = [value - min(r[k] for r in rows) for k, value in enumerate(row)]
        assert each.worst_regret == max(regrets)
        assert regrets["xyz".index(each.worst_task)] == max(regrets)
        places = [
            1 + sum(r[k] < v for r in rows) + (sum(r[k] == v for r in rows) - 1) / 2
            for k, v in enumerate(row)
        ]
        assert each.average_rank == pytest.approx(np.mean(places))

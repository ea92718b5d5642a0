"""The table of curves is gone through as it says, whoever decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stopping.__main__ import SETTINGS
from benchmarks.stopping.table import DENSITIES, UNITS, Table, figures
from benchmarks.stopping.ways import asha, ours, replay
from tests.orchestrator.record_factory import make_trials


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.make(80, 1, 0.6, 0.01)


def test_without_stopping_everything_is_trained(table: Table):
    found = replay(table, 8, 0, lambda *_: True, 0)
    assert sorted(found.finished) == list(range(80))
    assert found.compute == 80 * UNITS == found.spent[-1]
    compute, volume, *_ = figures(table, found)
    assert (compute, volume) == (1.0, 1.0)
    again = replay(table, 8, 0, lambda *_: True, 0)
    assert again == found
    assert replay(table, 8, 1, lambda *_: True, 0).finished != found.finished


@pytest.mark.parametrize("late", [0, 1])
def test_who_is_stopped_costs_as_much_as_it_made(table: Table, late: int):
    found = replay(table, 8, 0, lambda trial, unit, loss: trial < 70 or unit < 10, late)
    assert sorted(found.finished) == list(range(70))
    assert found.compute == 70 * UNITS + 10 * (10 + late)


def test_early_and_late_ranks_are_alike_and_not_the_same(table: Table):
    ranks = [table.rank_correlation(unit) for unit in (4, 16, 32, UNITS)]
    assert ranks == sorted(ranks)
    assert 0.2 < ranks[0] < 0.95
    assert ranks[-1] == pytest.approx(1)


def test_rungs_keep_the_best_of_each_density_and_save_compute(table: Table, tmp_path: Path):
    rungs = SETTINGS["0.4 and 0.8"]
    found = replay(table, 8, 0, ours(table, rungs, tmp_path), 1)
    assert found.compute < 0.85 * 80 * UNITS
    assert set(table.densities[found.finished]) == set(DENSITIES)
    notes = list(tmp_path.rglob("*.json"))
    assert len(notes) == 80
    single = replay(table, 8, 0, asha(table, rungs), 0)
    assert single.compute < 0.85 * 80 * UNITS
    assert np.isfinite(figures(table, found)).all()


def test_a_campaign_is_a_table_too(tmp_path: Path):
    trials = make_trials()
    table = Table.of(trials)
    assert table.sizes == [0.5, 0.4, 0.3, 0.2]
    points = [point for point in trials[0].curve if point.validation is not None]
    assert table.losses[0].tolist() == [point.validation for point in points]
    assert table.gated == sum(point.phase != "finetune" for point in points) > 0
    rung = (table.gated + 1) / table.units
    asked: list[int] = []
    answer = ours(table, [rung], tmp_path)

    def watched(trial: int, unit: int, loss: float) -> bool:
        if not answer(trial, unit, loss):
            asked.append(unit)
            return False
        return True

    found = replay(table, 2, 0, watched, 0)
    # while gates move nobody is judged, and by one validation afterwards neither
    assert set(asked) <= {table.gated + 2}
    assert set(table.densities[found.finished]) == set(table.sizes)


def test_trials_with_other_validations_are_no_table():
    one, other = make_trials()[:2]
    with pytest.raises(ValueError, match="validated at the same steps"):
        Table.of([one, replace(other, curve=other.curve[:-1])])

"""The scale benchmark but for its campaigns, which take minutes: spec, growth, page."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale.measure import Figures
from benchmarks.scale.page import above_linear, growth, write_page
from benchmarks.scale.spec import write_spec
from orchestrator.search import expected_trials, plan_trials
from orchestrator.spec_io import load_spec


def figures(trials: int, slow: float = 0.0) -> Figures:
    return Figures(
        trials=trials,
        load=0.3,
        stages={"start": 10.0, "trials": 5 + 2.0 * trials, "report": 1 + slow * trials**2},
        early_s=0.5,
        late_s=0.6,
        start_mib=500.0,
        peak_mib=600.0 + 0.1 * trials,
        database_mib=20 + 0.2 * trials,
        artifacts_mib=3.0 * trials,
        storage_mib=2.0 * trials,
        report_mib=0.3 + 0.001 * trials,
        lines=11 * trials,
        commands={"lowrank report": 3.0},
        command_mib={"lowrank report": 300.0},
    )


@pytest.mark.parametrize("trials", [10, 100])
def test_the_spec_asks_for_as_many_trials(trials: int, tmp_path: Path):
    spec = load_spec(write_spec(tmp_path, trials, "http://127.0.0.1:1", 4, 2))
    assert expected_trials(spec, spec.tasks[0]) == trials
    assert len(plan_trials(spec, spec.tasks[0], "")) == trials - 5, "repeats are a second round"
    assert spec.resources.cpus_per_worker == 0.5


@pytest.mark.parametrize("trials", [5, 11])
def test_a_size_that_cannot_be_is_refused(trials: int, tmp_path: Path):
    with pytest.raises(SystemExit, match=f"multiple of 5 and at least 10, got {trials}"):
        write_spec(tmp_path, trials, "http://127.0.0.1:1", 4, 2)


def test_growth_is_the_cost_of_one_more_trial():
    found = [figures(10), figures(100), figures(1000)]
    assert growth(found, [each.stages["trials"] for each in found]) == pytest.approx([2.0, 2.0])
    assert growth(found, [100.0, 100.0 * 100, 100.0 * 100**2])[1] > 100


@pytest.mark.parametrize(
    ("seconds", "above"),
    [
        ([15.0, 35.0, 235.0], 0.0),  # 0.22 s per trial
        ([15.0, 35.0, 285.0], 0.0),  # a quarter more than that
        ([15.0, 12.0, 60.0], 0.0),  # noise between the smaller ones
        ([15.0, 35.0, 385.0], 50.0),
        ([15.0, 12.0, 162.0], 100.0),
    ],
)
def test_above_linear_is_what_neither_noise_nor_a_line_explains(seconds: list[float], above: float):
    found = [figures(10), figures(100), figures(1000)]
    assert above_linear(found, seconds) == pytest.approx(above)


@pytest.mark.parametrize(
    ("slow", "says"),
    [
        (0.0, "No stage grows faster than linearly"),
        (0.01, "Above a line through the smaller sizes lie report"),
    ],
)
def test_the_page_tells_what_grows_faster_than_linearly(slow: float, says: str, tmp_path: Path):
    page = tmp_path / "scale.md"
    write_page([figures(1000, slow), figures(10, slow), figures(100, slow)], page, 2, 4)
    text = page.read_text()
    assert says in text
    assert "| trials | 25.0 | 205.0 | 2,005.0 | 2.000 | 2.000 | 1.00 |" in text
    assert (tmp_path / "scale" / "growth.png").stat().st_size > 10_000

"""Methods side by side: which runs stand for a method, and what is shown of them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from orchestrator.campaign_records import TaskResult
from orchestrator.records import ModelRecord
from orchestrator.report import write_report
from orchestrator.report_methods import compared_runs, mean_and_spread, methods_view
from orchestrator.report_table import terminal_table
from orchestrator.report_trials import trial_table
from orchestrator.selection import choose
from orchestrator.spec_after import SelectSpec
from tests.orchestrator.record_factory import (
    make_campaign,
    make_dense,
    make_key,
    make_task_result,
    make_trial,
)

BITS = "bits_per_character"


def run(method: str, density: float, bits: float, seed: int = 7, rate: float = 0.1) -> ModelRecord:
    return make_trial(
        density,
        rate,
        method_name=method,
        seed=seed,
        key=make_key(method, density, seed, rate),
        validation={BITS: bits},
        test={BITS: bits + 1},
    )


GATES = [
    run("gates", 0.5, 2.2),
    run("gates", 0.5, 2.1, rate=0.2),
    run("gates", 0.5, 2.3, seed=8, rate=0.2),
    run("gates", 0.5, 2.5, seed=9, rate=0.2),
    run("gates", 0.3, 2.4),
    run("gates", 0.3, 2.6, rate=0.2),
]
RANKS = [run("ranks", 0.5, 2.15), run("ranks", 0.5, 2.25, seed=8)]


def task_result(trials: list[ModelRecord]) -> TaskResult:
    dense = make_dense()
    return make_task_result(trials, dense, choose(trials, dense, SelectSpec()))


def test_the_repeated_draw_stands_for_a_method_and_else_the_best():
    table = compared_runs(task_result([*reversed(GATES), *RANKS]))
    assert {(m, d): runs.validation for m, row in table.items() for d, runs in row.items()} == {
        ("gates", 0.5): [2.1, 2.3, 2.5],
        ("gates", 0.3): [2.4],
        ("ranks", 0.5): [2.15, 2.25],
    }
    assert table["gates"][0.5].test == [3.1, 3.3, 3.5]


def test_a_draw_and_repeats_of_a_later_version_are_one_setting():
    """Records did not name the multiple of ranks when there was none."""
    old, *new = (run("gates", 0.5, 2.0 + seed / 100, seed=seed) for seed in (7, 8, 9))
    new = [replace(trial, config=trial.config | {"rank_multiple": 1}) for trial in new]
    assert "rank_multiple" not in old.config
    runs = compared_runs(task_result([old, *new]))["gates"][0.5]
    assert [trial.seed for trial in runs.trials] == [7, 8, 9]
    other = replace(old, config=old.config | {"rank_multiple": 8})
    runs = compared_runs(task_result([other, *new]))["gates"][0.5]
    assert [trial.seed for trial in runs.trials] == [8, 9]


def test_the_better_figure_is_the_higher_one_where_the_metric_says_so():
    kind, task = "classification", "sst2"
    trials = [
        make_trial(0.5, rate, kind, task, validation={"accuracy": accuracy}, method_name="m")
        for rate, accuracy in ((0.1, 0.8), (0.2, 0.9))
    ]
    dense = make_dense(kind, task)
    result = make_task_result(trials, dense, choose(trials, dense, SelectSpec()), kind)
    assert compared_runs(result)["m"][0.5].validation == [0.9]


def test_a_task_without_anything_to_compare_has_no_block():
    assert methods_view(task_result(GATES[:2]), "s") is None
    assert methods_view(task_result([]), "s") is None
    assert methods_view(task_result(GATES), "s") is not None, "repeats have a spread"
    once = methods_view(task_result([GATES[0], RANKS[0]]), "s")
    assert once is not None
    assert not once["repeated"]


@pytest.mark.parametrize(
    ("values", "text"),
    [([2.1, 2.3, 2.5], "2.300 ± 0.2 (3)"), ([2.1], "2.100 (1)"), ([], "n/a")],
)
def test_a_spread_needs_two(values: list[float], text: str):
    assert mean_and_spread(values) == text


def test_rows_are_methods_and_columns_densities():
    view = methods_view(task_result([*GATES, *RANKS]), "s")
    assert view is not None
    assert view["densities"] == [0.5, 0.3]
    (gates, first), (ranks, second) = view["rows"]
    assert (gates, ranks) == ("gates", "ranks")
    assert [cell["validation"] for cell in first] == ["2.300 ± 0.2 (3)", "2.400 (1)"]
    assert [cell["test"] for cell in second] == ["3.200 ± 0.071 (2)", ""]
    assert first[0]["settings"] == "penalty_lr 0.2"


def test_the_report_names_methods_and_seeds(tmp_path: Path):
    result = task_result([*GATES, *RANKS])
    path = write_report(make_campaign([result]), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert "Methods compared" in page
    assert "Quality over density" not in page
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for figure in figures:
        ElementTree.fromstring(figure)
    titles = [t for figure in figures for t in re.findall(r"<title>(.*?)</title>", figure)]
    assert any(t.startswith("gates, density ") and "3 seeds: bits per ch" in t for t in titles)
    assert {row.name for row in trial_table(result).rows if row.status != "failed"} >= {
        "gates, seed 8", "ranks, seed 7",
    }  # fmt: skip
    assert "gates, density 0.3, penalty_lr 0.1, seed 7" in result.choice.sentence


def test_the_terminal_shows_method_and_seed_where_there_are_several():
    out = io.StringIO()
    Console(file=out, width=200).print(terminal_table(task_result([*GATES, *RANKS])))
    text = out.getvalue()
    for word in ("method", "settings", "seed", "ranks", "penalty_lr 0.2"):
        assert word in text
    out = io.StringIO()
    Console(file=out, width=200).print(terminal_table(task_result(GATES[:2])))
    assert "seed" not in out.getvalue()
    assert "method" not in out.getvalue()


def test_any_number_of_methods_is_drawn():
    trials = [run(f"m{i}", 0.5, 2 + i / 50, seed) for i in range(11) for seed in (7, 8)]
    view = methods_view(task_result(trials), "s")
    assert view is not None
    assert len(view["rows"]) == 11


def test_a_method_with_markup_in_its_name_is_text(tmp_path: Path):
    odd = [replace(trial, method_name="<i>[bold]") for trial in RANKS]
    path = write_report(make_campaign([task_result([*GATES, *odd])]), tmp_path / "r.html")
    assert "<i>[bold]" not in path.read_text(encoding="utf-8")


def test_a_setting_that_missed_its_size_does_not_stand_for_a_method():
    met, missed = run("faithful", 0.5, 2.6), run("faithful", 0.5, 2.1, rate=0.2)
    assert met.densities is not None
    missed = replace(missed, densities=replace(met.densities, prunable=0.61))
    assert (met.excess, missed.excess) == (0.0, pytest.approx(0.11))
    table = compared_runs(task_result([missed, met]))
    assert table["faithful"][0.5].validation == [2.6]
    # a budget in another unit is not met in parameters
    macs = replace(missed, config=missed.config | {"budget": "macs"})
    assert macs.excess == 0.0

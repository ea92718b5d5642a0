"""What the report says of noise: intervals, probabilities, volume, and settings over tasks."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.front.assess import noisy_front
from orchestrator.front.figures import Interval
from orchestrator.report_front import front_view, interval_in_words
from orchestrator.report_table import terminal_table
from orchestrator.report_trials import trial_table
from orchestrator.wording import number, probability_in_words
from tests.orchestrator.front.test_assess import repeated
from tests.orchestrator.record_factory import make_campaign, make_trials
from tests.orchestrator.test_report import page_of, task_result


def with_front(task: TaskResult) -> TaskResult:
    return replace(task, noisy_front=noisy_front(task.trials, task.dense, task.data, draws=50))


def test_the_report_says_how_sure_the_front_is(tmp_path: Path) -> None:
    task = with_front(task_result(trials=repeated(0.004)))
    assert task.noisy_front is not None
    page = page_of(tmp_path, task)
    assert "How sure the front is" in page.text
    assert "One seed more or less moves bits per character by 0.004" in page.text
    assert "on the front of quality drop, parameters and latency at batch 32" in page.text
    assert "quality drop 10.0%, parameters 100.0%, latency 100.0%" in page.text
    volume = task.noisy_front.volumes[-1].volume
    assert f"{100 * volume.value:.1f}% (" in page.text
    best = task.noisy_front.settings[0]
    assert interval_in_words(best.quality, number) in page.text
    # a row per likely setting, not per run
    assert page.text.count(" 3 ") >= 4


def test_without_repeats_it_says_what_is_not_known(tmp_path: Path) -> None:
    page = page_of(tmp_path, with_front(task_result()))
    assert "No setting was repeated under another seed" in page.text


def test_results_of_earlier_versions_get_their_front_when_they_are_read(tmp_path: Path) -> None:
    page = page_of(tmp_path, task_result())
    assert "How sure the front is" in page.text
    assert front_view(task_result(trials=[]), None, "t") is None
    assert "How sure the front is" not in page_of(tmp_path, task_result(trials=[])).text


def test_tables_have_a_column_for_the_probability() -> None:
    task = with_front(task_result())
    front = task.noisy_front
    assert front is not None
    table = trial_table(task, front)
    assert table.columns[-1][0] == "P(front)"
    for row in table.rows:
        if row.status != "failed":
            assert row.cells[-1].order == front.probability_of(row.key)
        assert len(row.cells) == len(table.columns)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(terminal_table(task))
    text = console.export_text()
    assert "P(front)" in text
    assert probability_in_words(front.settings[0].probability) in text


def test_several_tasks_are_compared_by_regret_and_rank(tmp_path: Path) -> None:
    tasks = [task_result(), task_result(task="other", trials=make_trials(task="other"))]
    page = page_of(tmp_path, *tasks)
    assert "Over all tasks" in page.text
    assert "average rank" in page.text
    assert "Over all tasks" not in page_of(tmp_path, tasks[0]).text


@pytest.mark.parametrize(
    ("probability", "words"),
    [(0, "0%"), (0.001, "<1%"), (0.424, "42%"), (0.999, ">99%"), (1, "100%"), (None, "")],
)
def test_probabilities_in_words(probability: float | None, words: str) -> None:
    assert probability_in_words(probability) == words


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert interval_in_words(Interval(value=2.0, low=1.9, high=2.1), number) == (
        "2.000 (1.900 to 2.100)"
    )
    assert interval_in_words(Interval(value=2.0), number) == "2.000"
    assert interval_in_words(Interval(value=2.0, low=2.0, high=2.0), number) == "2.000"


def test_the_front_is_part_of_the_result_file(tmp_path: Path) -> None:
    campaign = make_campaign([with_front(task_result(trials=repeated(0.004)))])
    campaign.save(tmp_path / "result.json")
    assert CampaignResult.load(tmp_path / "result.json") == campaign

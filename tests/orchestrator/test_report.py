"""The report: one file, complete, safe with any text, and drawn for 0 to 200 trials."""

from __future__ import annotations

import io
import json
import math
import random
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from orchestrator import wording
from orchestrator.campaign_records import CampaignResult, FailedTrial, StoppedTrial, TaskResult
from orchestrator.records import ModelRecord
from orchestrator.report import shown_trials, write_front_figure, write_report
from orchestrator.report_curves import MAX_POINTS, _series, phases, rank_share
from orchestrator.report_table import terminal_table
from orchestrator.report_trials import outcome, trial_table
from orchestrator.selection import choose
from orchestrator.spec_after import SelectSpec
from tests.orchestrator.record_factory import (
    make_campaign,
    make_dense,
    make_task_result,
    make_trial,
    make_trials,
)

LM, CLASSIFICATION = ("language-modelling", "docs-lm"), ("classification", "sst2")


def task_result(
    kind: str = LM[0],
    task: str = LM[1],
    trials: list[ModelRecord] | None = None,
    require: tuple[str, ...] = ("quality_drop <= 4%",),
    **changes: Any,
) -> TaskResult:
    dense = make_dense(kind, task)
    trials = make_trials(kind, task) if trials is None else trials
    choice = choose(trials, dense, SelectSpec(require=list(require)))
    return make_task_result(trials, dense, choice, kind, **changes)


class Page(HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[tuple[int, str]] = set()
        """With the number of the figure: Matplotlib repeats a definition within one."""
        self.links: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.append((name, value or ""))
            if name == "id":
                self.ids.add((self.tags.count("svg"), value or ""))
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value for name, value in self.attributes if name == attribute]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(tmp_path: Path, *tasks: TaskResult, **changes: Any) -> Page:
    path = write_report(make_campaign(list(tasks), **changes), tmp_path / "deep" / "report.html")
    assert list(path.parent.iterdir()) == [path]
    return Page(path.read_text(encoding="utf-8"))


def test_the_whole_story_is_told(tmp_path: Path) -> None:
    tasks = task_result(*LM), task_result(*CLASSIFICATION)
    page = page_of(tmp_path, *tasks)
    assert "1 h 8 min" in page.text
    assert "24 finished, 2 failed" in page.text
    for task in tasks:
        assert task.promotion is not None
        assert task.choice.sentence in page.text
        assert task.promotion.sentence in page.text
        for trial in task.trials:
            assert trial.key[:8] in page.text
            assert trial.mlflow_run_id in page.text
        assert task.failed[0].reason in page.text
    # per task: front, density, front with intervals, volume, four panels, ranks, search
    assert page.tags.count("svg") == 20
    for part in ("champion", "candidate", "✓ pass", "✗ fail", "1.60x to 1.72x", "threads 2"):
        assert part in page.text


def test_one_file_without_network(tmp_path: Path) -> None:
    page = page_of(tmp_path, task_result(*LM), task_result(*CLASSIFICATION))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    names = [name for _, name in page.ids]
    assert len(names) == len(set(names))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(names)


def test_texts_from_people_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> $\\frac{1}$ {{ 7 * 7 }} & \"q\""
    trials = [
        replace(
            trial,
            ranks={f"h.{i}.{evil}": rank for i, rank in enumerate(trial.ranks.values())},
            config=trial.config | {"initialization": f"{evil} {index % 2}"},
            method_name=evil if index % 2 else "plain",
        )
        for index, trial in enumerate(make_trials())
    ]
    failed = [FailedTrial(key="k" * 16, task=evil, config={"penalty_lr": evil}, reason=evil)]
    task = task_result(*LM, trials=trials, failed=failed, data={"source": evil})
    result = make_campaign([replace(task, task=evil, kind=evil)], name=evil, hardware={"cpu": evil})
    card = (
        f"---\nlicense: {evil}\n---\n# {evil}\n\n| {evil} |\n|---|\n| ![{evil}](http://a.b/c) |\n"
    )
    path = write_report(result, tmp_path / "report.html", cards={evil: card})
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.text.count("alert('x')") >= 12
    assert "{{ 7 * 7 }}" in page.text
    assert page.values("data-method").count(evil) == page.values("data-method").count("plain") == 6
    assert evil in page.values("value")
    assert set(json.loads(page.values("data-lines")[0])) == {trial.key for trial in trials}
    assert all(link.startswith(("#", "data:")) for link in page.links)


@pytest.mark.parametrize("num_trials", [0, 1, 200])
def test_any_number_of_trials(tmp_path: Path, num_trials: int) -> None:
    draw = random.Random(0)
    rates = [10 ** draw.uniform(-2, 0) for _ in range(num_trials)]
    trials = [make_trial((0.5, 0.3, 0.2)[i % 3], rate) for i, rate in enumerate(rates)]
    task = task_result(*LM, trials=trials, require=())
    page = page_of(tmp_path, task)
    assert page.text.count("penalty_lr") >= num_trials
    assert len(shown_trials(task)) == min(num_trials, 8)
    assert (tmp_path / "deep" / "report.html").stat().st_size < 2e6


def test_bare_records_and_no_choice(tmp_path: Path) -> None:
    """No speed, no curves, no ranks, no promotion, and a rule that nobody meets."""
    bare = [
        make_trial(d, speed=[], curve=[], ranks={}, projection={}, mlflow_run_id=None, config={})
        for d in (0.3, 0.2)
    ]
    task = task_result(
        *LM, trials=bare, require=("quality_drop <= -50%",), promotion=None, failed=[], data={}
    )
    page = page_of(tmp_path, task, hardware={})
    assert outcome(task) == "none"
    assert "no choice" in page.text
    assert "Nearest is" in page.text
    assert page.tags.count("svg") == 4
    assert not re.search(r"\bnan\b", page.text)


def test_a_diverged_trial_does_not_flatten_the_plot(tmp_path: Path) -> None:
    wild = make_trial(0.5, 0.9, validation={"bits_per_character": 70.0})
    page = page_of(tmp_path, task_result(*LM, trials=[*make_trials(), wild]))
    assert page.text.count("1 trial off the scale") == 3


def test_mixed_machines_are_called_out(tmp_path: Path) -> None:
    trials = make_trials()
    other = [replace(row, fingerprint={"cpu": "another"}) for row in trials[1].speed]
    task = task_result(*LM, trials=[trials[0], replace(trials[1], speed=other)], require=())
    assert "2 different setups" in page_of(tmp_path, task).text


def test_a_check_that_is_no_rule_keeps_its_words(tmp_path: Path) -> None:
    task = task_result(*LM)
    assert task.promotion is not None
    checks = [
        {"rule": "speedup >= 1.2", "value": 1.432, "passed": True},
        {"rule": "weights hash", "value": "9f86d0", "passed": True},
        {"rule": "outputs equal", "value": 1.5e-6, "passed": True},
        {"rule": "reload", "value": None, "passed": False},
    ]
    page = page_of(tmp_path, replace(task, promotion=replace(task.promotion, checks=checks)))
    for part in ("1.43x", "weights hash", "9f86d0", "1.50e-06", "reload"):
        assert part in page.text


def test_marks_carry_tooltips_and_figures_are_well_formed(tmp_path: Path) -> None:
    path = write_report(make_campaign([task_result(*LM)]), tmp_path / "report.html")
    figures = re.findall(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), re.DOTALL)
    for figure in figures:
        ElementTree.fromstring(figure)
    titles = re.findall(r"<title>(.*?)</title>", figures[0])
    assert len(titles) == 12
    assert any(
        t.endswith("2.163 (2.8% worse); 281 k parameters (33.8%); 1.65x at batch 32")
        for t in titles
    )


def test_the_same_result_gives_the_same_file(tmp_path: Path) -> None:
    result = make_campaign([task_result(*CLASSIFICATION)])
    one, two = (write_report(result, tmp_path / name) for name in ("one.html", "two.html"))
    assert one.read_bytes() == two.read_bytes()


def test_front_figure_is_a_png_and_pyplot_stays_out(tmp_path: Path) -> None:
    path = write_front_figure(task_result(*LM), tmp_path / "deep" / "front.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


# --------------------------------------------------------------------------- tables


def test_the_table_is_whole_without_a_script_and_what_needs_one_is_hidden(tmp_path: Path) -> None:
    trials = [replace(t, method_name="ab"[i % 2]) for i, t in enumerate(make_trials())]
    task = task_result(*LM, trials=trials)
    path = write_report(make_campaign([task]), tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.values("data-key") == [row.key for row in trial_table(task).rows]
    assert re.findall(r'<option value="(\w*)"', text) == ["", *trial_table(task).methods]
    head, body = re.findall(
        r'<table class="sortable">.*?<thead>(.*?)</thead>(.*?)</table>', text, re.DOTALL
    )[0]
    headings = re.findall(r"<th\b", head)
    assert head.count("<button>") == len(headings), "a heading that no key reaches"
    rows = re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    assert [row.count("data-order=") for row in rows] == [len(headings)] * len(rows)
    for tag in re.findall(r"<(?:form|span|p)\b[^>]*data-script[^>]*>", text):
        assert " hidden" in tag
    assert text.count("data-script hidden") == 4
    # one method needs no choice of methods, and no trial no filter
    assert "<select" not in write_report(
        make_campaign([task_result(*LM)]), tmp_path / "one.html"
    ).read_text(encoding="utf-8")


def test_rows_are_ordered_and_searched_fields_show() -> None:
    trials = make_trials()
    trials[0] = replace(trials[0], config=trials[0].config | {"distill": 0.0})
    trials[1] = replace(trials[1], warm_start="first/abc")
    table = trial_table(task_result(*LM, trials=trials))
    statuses = [row.status for row in table.rows]
    assert statuses == ["champion"] + ["front"] * 6 + ["dominated"] * 5 + ["failed"]
    assert {row.extra for row in table.rows if row.status != "failed"} == {
        "distill 0.5", "distill 0", "distill 0.5, from first/abc",
    }  # fmt: skip
    assert all(len(row.cells) == len(table.columns) for row in table.rows)


def test_draws_that_were_stopped_early_are_no_failures(tmp_path: Path) -> None:
    task = task_result(*LM)
    config = task.trials[0].config | {"density": 0.25, "penalty_lr": 0.9}
    fields = {"task": task.task, "config": config, "method_name": task.trials[0].method_name}
    stopped = [
        StoppedTrial(
            key=name * 8, seed=0, rung=rung, step=step, total_steps=900, reason=f"{name}!", **fields
        )
        for name, rung, step in (("ab", 0.4, 400), ("cd", 0.6, 600), ("ef", 0.4, 450))
    ]
    task = replace(task, stopped=stopped)
    statuses = [row.status for row in trial_table(task).rows]
    assert statuses[-4:] == ["stopped"] * 3 + ["failed"]
    counted = "12 finished, 1 failed, 3 stopped early (2 at rung 0.4, 1 at rung 0.6), 1,250 steps"
    page = page_of(tmp_path, task)
    out = io.StringIO()
    Console(file=out, width=200).print(terminal_table(task))
    for text in (page.text, out.getvalue()):
        assert counted in text
        assert all(trial.reason in text for trial in stopped)
    assert "They left no model and are no failures" in page.text
    # without any nothing is said of it
    assert "Stopped early" not in page_of(tmp_path, task_result(*LM)).text
    assert CampaignResult.load(saved(tmp_path, task)).tasks[0].stopped == stopped


def saved(folder: Path, task: TaskResult) -> Path:
    make_campaign([task]).save(folder / "result.json")
    return folder / "result.json"


def test_terminal_table_marks_front_and_champion() -> None:
    task = task_result(*LM)
    task = replace(task, failed=[replace(task.failed[0], reason="[bold]odd[/nothing]")])
    out = io.StringIO()
    Console(file=out, width=160).print(terminal_table(task))
    text = out.getvalue()
    assert text.count("★") == 7 + 1  # and the caption
    assert sum("champion" in line and "★" in line for line in text.splitlines()) == 2
    assert "[bold]odd[/nothing]" in text
    assert text.count("dense") >= 2


def test_shown_trials_start_with_the_chosen_and_the_front() -> None:
    task = task_result(*LM)
    keys = [trial.key for trial in shown_trials(task)]
    assert keys[0] == task.choice.key
    assert set(keys[:7]) == set(task.choice.front)


# --------------------------------------------------------------------------- curves and words


def test_long_curves_are_averaged_and_gaps_left_out() -> None:
    curve = make_trial().curve
    long = [replace(curve[0], step=i, train_loss=float(i % 2)) for i in range(10_000)]
    steps, values = _series(long, "train_loss")
    assert len(steps) == MAX_POINTS
    assert all(value == pytest.approx(0.5, abs=0.02) for value in values)
    assert len(_series(curve, "validation")[0]) == 8
    assert phases(curve) == [("anneal", 0), ("hold", 210), ("finetune", 270)]


def test_break_even_is_one_and_so_is_dense() -> None:
    layer = {"rank": 64, "full_rank": 128, "in_features": 128, "out_features": 128, "dense": 0}
    assert rank_share(layer) == 1.0
    assert rank_share(layer | {"rank": 16}) == 0.25
    assert rank_share(layer | {"rank": 128, "dense": 1}) == 1.0
    assert rank_share(layer | {"rank": 16, "factored": 1}) == 16 / layer["full_rank"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (wording.number(0.92), "0.9200"),
        (wording.number(24.531), "24.53"),
        (wording.number(999.96), "1,000"),
        (wording.number(1234.5), "1,234"),
        (wording.number(0), "0.000"),
        (wording.number(math.nan), "n/a"),
        (wording.percent(0.0163), "1.6%"),
        (wording.percent(0.0004), "0.04%"),
        (wording.percent(-0.0123), "-1.2%"),
        (wording.percent(1), "100.0%"),
        (wording.percent(0.00996), "1.0%"),
        (wording.count(999), "999"),
        (wording.count(999_600), "1.00 M"),
        (wording.count(834_560), "835 k"),
        (wording.count(7_241_000_000), "7.24 B"),
        (wording.count(3_330_000, "B"), "3.33 MB"),
        (wording.ratio(1.432), "1.43x"),
        (wording.milliseconds(0.0512), "0.0512 ms"),
        (wording.milliseconds(1234.0), "1,234 ms"),
        (wording.half_spread(4.4), "2.2"),
        (wording.half_spread(123.0), "62"),
        (wording.duration(3.24), "3.2 s"),
        (wording.duration(59.99), "60.0 s"),
        (wording.duration(252), "4 min 12 s"),
        (wording.duration(7_980), "2 h 13 min"),
        (wording.duration(200_000), "2 d 7 h"),
        (wording.against_dense(-0.004), "0.40% better"),
        (wording.against_dense(0.0), "equal"),
        (wording.settings({"b": 0.03162, "a": 1, "c": None}, "abcd"), "a 1, b 0.0316"),
        (wording.facts({"a_b": 1_000, "c": {"d": 0.5}}), "a b 1,000, c (d 0.5)"),
        (wording.facts({"cut": ["x", "y"], "labels": [], "pad": None, "n": 0}), "cut x y, n 0"),
    ],
)  # fmt: skip
def test_figures_in_words(text: str, expected: str) -> None:
    assert text == expected

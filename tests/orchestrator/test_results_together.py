"""One page of several tasks: a table of all of them, then a chapter each."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from statistics import fmean

import pytest

from orchestrator.results import Asked, write_results
from orchestrator.results.read import Results, read_results
from orchestrator.results.together import together
from orchestrator.spec import CampaignSpec
from tests.orchestrator.results_factory import ACCURACY, FakeReader, make_spec

TODAY = date(2026, 11, 26)


def moods() -> CampaignSpec:
    task = {
        "name": "moods",
        "kind": "classification",
        "data": {"source": "python-docs"},
        "model": {"type": "bert", "config": {"num_hidden_layers": 6}},
        "dense": {"steps": 600, "learning_rate": 2e-3},
    }
    return make_spec(tasks=[task])


@pytest.fixture(scope="module")
def tasks() -> list[Results]:
    """Bits per character, where lower is better, and accuracy, where one method never ran."""
    found = []
    for spec, metric in ((make_spec(), None), (moods(), ACCURACY)):
        reader = FakeReader(spec) if metric is None else FakeReader(spec, metric=metric)
        if metric is not None:
            never = [plan.key for plan in reader.plans() if plan.method_name == "agp"]
            reader = FakeReader(spec, metric=metric, unfinished=never)
        found.append(read_results(reader, spec, spec.tasks[0]))
    return found


def rows(block: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
    return {row[0]: row[1:] for row in cells[2:]}


def test_a_table_per_density_has_every_method_and_task(tasks: list[Results]):
    blocks = together(tasks)
    assert [block for block in blocks if block.startswith("Density")] == [
        "Density 0.5:",
        "Density 0.25:",
        "Density 0.1:",
    ]
    for density, block in zip((0.5, 0.25, 0.1), blocks[2::2], strict=True):
        found = rows(block)
        assert list(found) == ["dense", "adaptive", "uniform", "flop-l0", "agp"]
        changes = []
        for task, sign, cell in zip(tasks, (-1, 1), found["uniform"], strict=False):
            mean = fmean(task.runs()["uniform"][density].test)
            change = mean / task.dense.test[task.metric] - 1
            changes.append(sign * change)
            shown = re.search(r"<br>([+-][\d.]+)%", cell)
            assert shown is not None
            assert float(shown[1]) == pytest.approx(100 * change, abs=0.051)
        # worse on both tasks, though one figure rises and the other falls
        assert max(changes) < 0
        assert float(found["uniform"][2].rstrip("%")) == pytest.approx(
            100 * fmean(changes), abs=0.051
        )


def test_a_method_that_did_not_run_on_every_task_has_no_mean(tasks: list[Results]):
    for block in together(tasks)[2::2]:
        cells = rows(block)["agp"]
        assert cells[0] != "-"
        assert cells[1:] == ["-", "-"]


def test_the_best_of_each_task_is_bold_and_single_weights_are_apart(tasks: list[Results]):
    for block in together(tasks)[2::2]:
        found = rows(block)
        for column in (0, 1):
            bold = [method for method, cells in found.items() if cells[column].startswith("**")]
            assert bold == ["adaptive"]


def test_the_page_has_chapters_and_the_plots_folders(tasks: list[Results], tmp_path: Path):
    asked = Asked(spec=Path("s.yaml"), overrides=(), task=None, out=tmp_path / "page.md")
    page = write_results(tasks, asked, TODAY).read_text()
    assert page.startswith("# compare: methods compared\n")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["All tasks", "letters", "moods"]
    sections = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert sections.count("Quality") == 2
    for task in ("letters", "moods"):
        assert f"](page/{task}/quality.png)" in page
        assert (tmp_path / "page" / task / "quality.png").stat().st_size > 1000
    assert "    lowrank results s.yaml --out page.md" in page

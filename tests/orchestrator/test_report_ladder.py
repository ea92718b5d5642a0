"""Ladders in the report: the trunk's preview beside the models that came of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.campaign_records import TaskResult
from orchestrator.records import CurvePoint, LadderFacts, ModelRecord
from orchestrator.report import write_report
from orchestrator.report_ladder import descents, ladder_view
from tests.orchestrator.record_factory import make_campaign, make_trial
from tests.orchestrator.test_report import task_result

DENSITIES = [0.5, 0.3, 0.2]
RUNGS = [40, 60, 80]


def ladder(rate: float, trunk: str | None = None, worst: float = 4.0) -> list[ModelRecord]:
    """Three models of one trunk that was looked at every ten steps on its way down."""
    trunk = trunk or f"trunk-{rate}"
    models = []
    for density, rung in zip(DENSITIES, RUNGS, strict=True):
        facts = LadderFacts(
            trunk=trunk, densities=DENSITIES, shared_steps=0, trunk_steps=20, branch_steps=40
        )
        seen = [
            CurvePoint(
                step=step,
                phase="anneal",
                seconds=1.0,
                extras={
                    "projected_density": 1 - step / 100,
                    "projected": 2.2 + (worst - 2.2) * (step / 80) ** 2,
                },
            )
            for step in range(10, rung + 1, 10)
        ]
        after = [CurvePoint(step=rung + 40, phase="finetune", seconds=2.0, validation=2.2)]
        models.append(replace(make_trial(density, rate), ladder=facts, curve=[*seen, *after]))
    return models


def of(trials: list[ModelRecord]) -> TaskResult:
    return task_result(trials=trials, require=())


def test_the_models_of_a_trunk_belong_together_with_its_longest_preview() -> None:
    first, second = descents(of([*reversed(ladder(0.1)), *ladder(0.2)]))
    assert (first.name, second.name) == ("penalty_lr 0.1", "penalty_lr 0.2")
    assert [model.target_density for model in first.models] == DENSITIES
    assert [step for *_, step in first.preview] == list(range(10, 81, 10))
    assert first.preview[-1][:2] == (pytest.approx(0.2), pytest.approx(4.0))


def test_rows_set_the_nearest_preview_beside_each_model() -> None:
    view = ladder_view(of(ladder(0.1)), "s")
    assert view is not None
    assert [row["name"] for row in view["rows"]] == ["penalty_lr 0.1", "", ""]
    assert [row["density"] for row in view["rows"]] == ["50.0%", "30.0%", "20.0%"]
    previews = [f"{2.2 + 1.8 * (step / 80) ** 2:.4g}" for step in (50, 70, 80)]
    expected = [f"{p} at {d}" for p, d in zip(previews, ("50.0%", "30.0%", "20.0%"), strict=True)]
    assert [row["preview"].replace("4.000", "4") for row in view["rows"]] == expected


def test_the_last_look_at_a_density_counts() -> None:
    models = ladder(0.1)
    stay = CurvePoint(
        step=85,
        phase="anneal",
        seconds=1.0,
        extras={"projected_density": 0.203, "projected": 3.25},
    )
    models[2] = replace(models[2], curve=[*models[2].curve[:8], stay])
    view = ladder_view(of(models), "s")
    assert view is not None
    assert view["rows"][2]["preview"] == "3.250 at 20.3%"
    assert view["rows"][1]["preview"].endswith("at 30.0%")


def test_previews_far_off_the_models_stay_at_the_edge_and_say_what_they_are() -> None:
    view = ladder_view(of(ladder(0.1, worst=400.0)), "s")
    assert view is not None
    figure = view["figure"]
    tips = re.findall(r"<title>([^<]*)</title>", figure)
    assert "penalty_lr 0.1, step 80: 400.0 at 20.0%" in tips
    assert sum("model:" in tip for tip in tips) == 3
    # without the edge, the axis would need ticks of hundreds
    assert not re.search(r">[1-9]00<", figure)


def test_trials_without_a_trunk_have_no_block(tmp_path: Path) -> None:
    assert ladder_view(of([make_trial(d) for d in DENSITIES]), "s") is None
    chain = [replace(model, curve=[]) for model in ladder(0.1)]
    assert ladder_view(of(chain), "s") is None
    page = write_report(make_campaign([of(ladder(0.1))]), tmp_path / "r.html").read_text()
    assert "<h3>Ladders</h3>" in page


def test_more_ladders_than_colours_are_counted() -> None:
    trials = [model for rate in range(1, 11) for model in ladder(rate / 10)]
    view = ladder_view(of(trials), "s")
    assert view is not None
    assert (view["num_shown"], view["num_ladders"]) == (8, 10)
    assert len(view["rows"]) == 30

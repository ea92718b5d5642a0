"""Parallel coordinates: where a trial lies on each axis, and that the drawing agrees."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.campaign_records import TaskResult
from orchestrator.records import ModelRecord
from orchestrator.report_search import (
    APART,
    FEW,
    NONE,
    Axis,
    draw_search,
    search_axes,
    search_view,
)
from orchestrator.report_svg import as_svg
from tests.orchestrator.record_factory import make_key, make_trial
from tests.orchestrator.test_report import CLASSIFICATION, LM, task_result


def with_config(*configs: dict[str, Any], **changes: Any) -> list[ModelRecord]:
    """Trials that differ in what is given."""
    return [
        make_trial(
            config.get("density", 0.3),
            key=make_key(index),
            config={"kind": "adaptive", "density": 0.3} | config,
            **changes,
        )
        for index, config in enumerate(configs)
    ]


def axes_of(task: TaskResult) -> dict[str, Axis]:
    return {axis.title: axis for axis in search_axes(task, task.trials)}


def found(*configs: dict[str, Any]) -> dict[str, Axis]:
    return axes_of(task_result(*LM, trials=with_config(*configs), require=()))


def test_rates_are_logarithmic_and_fractions_are_not() -> None:
    axes = found(
        {"penalty_lr": 0.02, "gated_fraction": 0.2},
        {"penalty_lr": 0.04, "gated_fraction": 0.3},
        {"penalty_lr": 0.08, "gated_fraction": 0.6},
    )
    assert axes["penalty_lr"].places == pytest.approx([0, 0.5, 1])
    assert axes["gated_fraction"].places == pytest.approx([0, 0.25, 1])
    assert axes["gated_fraction"].ticks[1] == (pytest.approx(0.25), "0.3")


def test_a_setting_over_decades_is_logarithmic_but_not_with_a_zero() -> None:
    axes = found({"steps": 10, "distill": 0.0}, {"steps": 100, "distill": 0.1}, {"steps": 1000})
    assert axes["steps"].places == pytest.approx([0, 0.5, 1])
    assert axes["distill"].places == [0, 1, NONE]


def test_names_switches_and_mixtures_are_categories_from_the_top() -> None:
    axes = found(
        {"initialization": "svd", "embeddings": True, "rank": "auto"},
        {"initialization": "random", "embeddings": False, "rank": 8},
        {"initialization": "svd", "embeddings": True},
        {"initialization": "activation", "embeddings": True, "rank": 8},
    )
    assert axes["initialization"].places == [1, 0.5, 1, 0]
    assert axes["initialization"].ticks == [(1, "svd"), (0.5, "random"), (0, "activation")]
    assert axes["embeddings"].places == [1, 0, 1, 1]
    assert axes["rank"].places == [1, 0, NONE, 0]


def test_only_what_differs_has_an_axis_and_quality_is_the_last() -> None:
    trials = with_config({"penalty_lr": 0.1, "distill": 0.5}, {"penalty_lr": 0.2, "distill": 0.5})
    task = task_result(*LM, trials=trials, require=())
    titles = ["penalty_lr", "parameters", "speed @ 32", "bits per character"]
    assert list(axes_of(task)) == titles
    several = [replace(trials[0], method_name="a"), replace(trials[1], method_name="b")]
    assert next(iter(axes_of(task_result(*LM, trials=several, require=())))) == "method"
    unmeasured = [replace(trial, speed=[]) for trial in trials]
    titles.remove("speed @ 32")
    assert list(axes_of(task_result(*LM, trials=unmeasured, require=()))) == titles


@pytest.mark.parametrize("kind", [LM, CLASSIFICATION])
def test_better_is_up(kind: tuple[str, str]) -> None:
    """Whichever way the metric improves; the dense reference lies on the same scale."""
    task = task_result(*kind)
    axes, sign = axes_of(task), -1 if kind == LM else 1
    quality = list(axes.values())[-1]
    by_place = sorted(zip(quality.places, task.trials, strict=True), key=lambda each: each[0])
    figures = [sign * trial.quality for _, trial in by_place]
    assert figures == sorted(figures)
    dense = sign * task.dense.quality
    assert quality.dense is not None
    for place, trial in by_place:
        assert (place < quality.dense) == (sign * trial.quality < dense)
    sizes = axes["parameters"].places
    smallest = min(task.trials, key=lambda trial: trial.size.num_parameters)
    assert sizes[task.trials.index(smallest)] == 1
    assert axes["parameters"].dense == 0
    fastest = max(task.trials, key=lambda trial: trial.speedup(32))
    assert axes["speed @ 32"].places[task.trials.index(fastest)] == 1


def test_a_diverged_trial_lies_at_the_bottom_and_is_counted() -> None:
    wild = make_trial(0.5, 0.9, validation={"bits_per_character": 70.0})
    lost = make_trial(0.4, 0.9, validation={"bits_per_character": math.nan})
    trials = [wild, lost, *task_result(*LM).trials]
    task = replace(task_result(*LM), trials=trials)
    view = search_view(task, "s")
    assert view is not None
    assert (view["outside"], view["left_out"]) == ("1 trial", "1 trial")
    assert lost.key not in view["lines"]
    assert view["lines"][wild.key][-1] == 0
    others = [ys[-1] for key, ys in view["lines"].items() if key != wild.key]
    assert max(others) - min(others) > 0.4, "flattened"


def test_one_trial_is_no_search() -> None:
    task = task_result(*LM)
    assert search_view(replace(task, trials=task.trials[:1]), "s") is None
    assert search_view(replace(task, trials=[]), "s") is None


@pytest.mark.parametrize("number_of", [2, 6, 7, 60])
def test_labels_of_an_axis_lie_apart(number_of: int) -> None:
    draw = random.Random(number_of)
    configs = [
        {
            "penalty_lr": 10 ** draw.uniform(-2, 0),
            "distill": draw.random(),
            "learning_rate": draw.uniform(0.02, 0.021),
            "initialization": f"way {index}",
        }
        for index in range(number_of)
    ]
    for axis in found(*configs).values():
        places = sorted(place for place, _ in axis.ticks)
        assert places, axis.title
        assert places[0] >= -1e-9
        assert places[-1] <= 1 + 1e-9
        assert all(b - a >= APART - 1e-9 for a, b in pairwise(places))
        assert len({label for _, label in axis.ticks}) == len(axis.ticks), axis.title
    few = found(*[{"distill": value} for value in (0.0, 0.25, 0.5)])["distill"]
    assert [label for _, label in few.ticks] == ["0", "0.25", "0.5"]
    assert len(few.ticks) <= FEW


def test_the_lines_are_drawn_where_the_page_looks_for_them() -> None:
    """The script finds axes by their lines, and trials by the places beside the figure."""
    trials = with_config(
        {"penalty_lr": 0.02, "distill": 0.1}, {"penalty_lr": 0.3}, {"penalty_lr": 0.5, "distill": 0}
    )
    task = task_result(*LM, trials=trials, require=())
    view = search_view(task, "s")
    assert view is not None
    assert view["some_none"]
    marks = dict(
        re.findall(
            r'<g data-mark="([^"]+)"><title>[^<]*</title>\s*<path d="([^"]+)"', view["figure"]
        )
    )
    axes = search_axes(task, trials)
    points = {
        mark: [tuple(map(float, p)) for p in re.findall(r"[ML] (\S+) (\S+)", path)]
        for mark, path in marks.items()
    }
    assert set(points) == {f"axis-{i}" for i in range(len(axes))} | {t.key for t in trials}
    for index, trial in enumerate(trials):
        assert view["lines"][trial.key] == pytest.approx(
            [axis.places[index] for axis in axes], abs=1e-3
        )
        for at, (x, y) in enumerate(points[trial.key]):
            (bottom_x, bottom), (_, top) = points[f"axis-{at}"]
            assert x == pytest.approx(bottom_x, abs=0.01)
            place = (bottom - y) / (bottom - top)
            assert place == pytest.approx(view["lines"][trial.key][at], abs=2e-3)


def test_the_chosen_trial_is_on_top() -> None:
    task = task_result(*LM)
    axes = search_axes(task, task.trials)
    svg = as_svg(
        lambda figure: draw_search(figure, task, task.trials, axes), salt="s", label="search"
    )
    marks = re.findall(r'data-mark="([^"]+)"', svg)
    assert marks[-1] == task.choice.key

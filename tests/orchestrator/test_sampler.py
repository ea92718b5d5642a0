"""The Bayesian search: a pure function, better than chance where there is something to learn."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest

from orchestrator.front.hypervolume import hypervolume
from orchestrator.sampler import Space, Tried, suggest
from orchestrator.spec_values import Distribution

RATE = Distribution(log_uniform=(1e-4, 1e-1))
SPACE: Space = {"density": [0.5, 0.25, 0.1], "learning_rate": RATE, "start": ["svd", "random"]}


def truth(values: dict[str, object]) -> tuple[float, float]:
    """A loss with a valley in the rate that moves with the density; the size is the density."""
    density, rate = float(values["density"]), float(values["learning_rate"])
    best = -2.5 + density
    loss = 2 + 0.3 * (1 - density) ** 2 + (math.log10(rate) - best) ** 2
    return loss + (0.5 if values["start"] == "random" else 0.0), density


def searched(seed: int, startup: int, rounds: int = 6, batch: int = 4) -> list[Tried]:
    noise = np.random.RandomState(seed)
    tried: list[Tried] = []
    for number in range(rounds):
        for values in suggest(SPACE, tried, batch, 100 * seed + number, startup):
            loss, size = truth(values)
            tried.append(Tried(values=values, objectives=(loss + 0.01 * noise.randn(), size)))
    return tried


def volume(tried: list[Tried]) -> float:
    return hypervolume(np.array([truth(each.values) for each in tried]), (3.0, 1.0))


@pytest.fixture(scope="module")
def past() -> list[Tried]:
    return searched(1, startup=10**6, rounds=2)


def test_values_lie_in_the_space():
    for values in suggest(SPACE, [], 50, 0, 10):
        assert values["density"] in SPACE["density"]
        assert 1e-4 <= values["learning_rate"] <= 1e-1
        assert values["start"] in ("svd", "random")


def test_the_same_past_and_seed_suggest_the_same(past: list[Tried]):
    assert suggest(SPACE, past, 2, 7, 4) == suggest(SPACE, list(past), 2, 7, 4)
    assert suggest(SPACE, past, 2, 7, 4) != suggest(SPACE, past, 2, 8, 4)
    assert suggest(SPACE, past, 2, 7, 4) != suggest(SPACE, past[:-4], 2, 7, 4)


@pytest.mark.slow
def test_it_learns():
    """Against random draws of the same number, over seeds."""
    learned = [volume(searched(seed, startup=6, rounds=4)) for seed in range(3)]
    by_chance = [volume(searched(seed, startup=10**6, rounds=4)) for seed in range(3)]
    assert median(learned) > median(by_chance)


def test_the_trials_of_one_batch_differ(past: list[Tried]):
    rates = [values["learning_rate"] for values in suggest(SPACE, past, 4, 3, 4)]
    assert len(set(rates)) == 4


@pytest.mark.parametrize("objectives", [None, (math.nan, 0.5), (math.inf, 0.5)])
def test_what_failed_is_no_result(past: list[Tried], objectives: tuple[float, float] | None):
    """Otherwise all of its neighbourhood would look the best there is, or stop the search."""
    failed = Tried(values=past[0].values, objectives=objectives)
    again = suggest(SPACE, [*past, failed], 2, 5, 4)
    assert len(again) == 2
    assert again == suggest(SPACE, [*past, Tried(values=failed.values, objectives=None)], 2, 5, 4)


def test_nothing_but_failures_goes_on():
    failures = [Tried(values=v, objectives=None) for v in suggest(SPACE, [], 12, 0, 4)]
    assert len(suggest(SPACE, failures, 3, 1, 4)) == 3


@pytest.mark.parametrize(
    "change", [{"density": 0.3}, {"learning_rate": 0.5}, {"start": "other"}, {"start": None}]
)
def test_trials_of_another_space_teach_nothing(past: list[Tried], change: dict[str, object]):
    stranger = Tried(values=past[0].values | change, objectives=(0.0, 0.0))
    assert suggest(SPACE, [*past, stranger], 2, 5, 4) == suggest(SPACE, past, 2, 5, 4)


def test_a_value_that_rounding_moved_out_of_the_range_still_counts():
    space: Space = {"learning_rate": Distribution(uniform=(0.12345, 0.98765))}
    for value in (0.1234, 0.9877):
        past = [Tried(values={"learning_rate": value}, objectives=(1.0, 1.0))] * 3
        assert len(suggest(space, past, 2, 0, 2)) == 2
        (found,) = suggest(space, past, 1, 0, 2)
        assert 0.12345 <= found["learning_rate"] <= 0.98765

"""Selection: who is a candidate, who wins, and what the sentence tells."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.front.dominance import pareto_front
from orchestrator.front.objectives import largest_batch, loss_values
from orchestrator.records import ModelRecord
from orchestrator.rules import parse_rule
from orchestrator.selection import choose, reference_drop
from orchestrator.spec_after import SelectSpec
from tests.orchestrator.record_factory import (
    dense_size,
    make_dense,
    make_speed,
    make_trial,
    make_trials,
)

OBJECTIVES = ("smallest", "fastest", "best", "knee")
DENSE = make_dense()


def trial(key: str, quality: float, parameters: int, ms: float | None = None) -> ModelRecord:
    """A trial of which only the three objectives matter."""
    return make_trial(
        key=key,
        validation={"bits_per_character": quality},
        size=replace(dense_size("language-modelling"), num_parameters=parameters),
        speed=[] if ms is None else [make_speed(1, 100 / ms, 100.0)],
        curve=[],
    )


@st.composite
def campaigns(draw: st.DrawFn) -> list[ModelRecord]:
    """Few values, so that ties and duplicates occur; speed is measured or not."""
    figures = st.tuples(
        st.sampled_from([2.0, 2.11, 2.2]),
        st.sampled_from([200_000, 300_000]),
        st.sampled_from([None, 10.0, 20.0]),
    )
    drawn = draw(st.lists(figures, max_size=6))
    return [trial(f"k{index}", *figure) for index, figure in enumerate(drawn)]


@settings(deadline=None, max_examples=150)
@given(
    campaigns(),
    st.sampled_from(OBJECTIVES),
    st.lists(st.sampled_from(["quality_drop <= 1%", "parameters <= 30%", "speedup >= 6"])),
    st.randoms(use_true_random=False),
)
def test_the_choice_is_a_passing_front_member_whatever_the_order(
    trials: list[ModelRecord], then: str, require: list[str], shuffle: random.Random
) -> None:
    select = SelectSpec(require=require, then=then)
    choice = choose(trials, DENSE, select)
    front = pareto_front(loss_values(trials, DENSE))
    assert set(choice.front) == {t.key for t, on in zip(trials, front, strict=True) if on}
    rules = [parse_rule(text) for text in require]
    assert set(choice.passed) == {
        t.key for t in trials if all(r.check(r.value_of(t, DENSE)) for r in rules)
    }
    candidates = set(choice.front) & set(choice.passed)
    if choice.key is None:
        assert choice.sentence.startswith("No model was chosen")
        assert not candidates or (then == "fastest" and largest_batch(trials) is None)
    else:
        assert choice.key in candidates
    shuffled = list(trials)
    shuffle.shuffle(shuffled)
    assert choose(shuffled, DENSE, select) == choice


@pytest.mark.parametrize(
    ("then", "winner"), [("smallest", "small"), ("fastest", "fast"), ("best", "good")]
)
def test_objectives(then: str, winner: str) -> None:
    trials = [
        trial("small", 2.20, 200_000, 20.0),
        trial("fast", 2.20, 250_000, 10.0),
        trial("good", 2.11, 400_000, 30.0),
        trial("dominated", 2.30, 450_000, 40.0),
    ]
    choice = choose(trials, DENSE, SelectSpec(then=then))
    assert choice.key == winner
    assert choice.front == ["good", "fast", "small"]
    assert f"density 0.3, penalty_lr 0.1 ({winner})" in choice.sentence


def test_knee_bends_most() -> None:
    trials = [trial("a", 2.10, 800_000), trial("b", 2.12, 300_000), trial("c", 2.30, 200_000)]
    assert choose(trials, DENSE, SelectSpec(then="knee")).key == "b"


def test_ties_go_to_quality_then_to_the_key() -> None:
    same_size = [trial("b", 2.2, 200_000, 10.0), trial("a", 2.3, 200_000, 9.0)]
    assert choose(same_size, DENSE, SelectSpec(then="smallest")).key == "b"
    copies = [trial("z", 2.2, 200_000), trial("y", 2.2, 200_000)]
    assert choose(copies, DENSE, SelectSpec(then="smallest")).key == "y"


def test_the_sentence_has_the_numbers_and_the_runner_up() -> None:
    choice = choose(make_trials(), DENSE, SelectSpec(require=["quality_drop <= 4%"]))
    assert choice.key is not None
    for part in (
        "density 0.3, penalty_lr 0.1",
        f"({choice.key[:8]})",
        "smallest of 5 front models passing quality_drop <= 4%",
        "bits per character 2.163 against 2.104 dense (2.8% worse)",
        "281 k parameters, 33.8% of dense",
        "1.65x the speed of dense at batch 32",
        "Runner-up: density 0.3, penalty_lr 0.02",
    ):
        assert part in choice.sentence


def test_the_sentence_says_what_the_runner_up_costs_and_wins() -> None:
    trials = [trial("small", 2.20, 200_000, 20.0), trial("good", 2.15, 260_000, 25.0)]
    # two settings, not one with two seeds
    trials[1] = replace(trials[1], config=trials[1].config | {"penalty_lr": 0.2})
    sentence = choose(trials, DENSE, SelectSpec()).sentence
    assert sentence.endswith(
        "to switch to it costs 60.0 k parameters (7.2% of dense) and 1.00x of speed and wins "
        "2.4 points of quality."
    )
    other_way = choose(trials, DENSE, SelectSpec(then="best")).sentence
    assert other_way.endswith(
        "costs 2.4 points of quality and wins 60.0 k parameters (7.2% of dense) and 1.00x of speed."
    )
    copies = [trial("a", 2.2, 200_000), trial("b", 2.2, 200_000)]
    assert choose(copies, DENSE, SelectSpec()).sentence.endswith("to switch to it costs nothing.")


def test_the_sentence_says_when_seeds_differ_by_as_much() -> None:
    def seeds(quality: float, parameters: int, penalty_lr: float) -> list[ModelRecord]:
        first = trial(f"{parameters}", quality, parameters)
        first = replace(first, config=first.config | {"penalty_lr": penalty_lr})
        again = {"bits_per_character": quality + 0.02}
        return [first, replace(first, key=f"{parameters}-again", seed=8, validation=again)]

    words = "though seeds of one setting differ in quality by as much"
    close = [*seeds(2.20, 200_000, 0.1), *seeds(2.19, 260_000, 0.2)]
    assert words in choose(close, DENSE, SelectSpec()).sentence
    apart = [*seeds(2.60, 200_000, 0.1), *seeds(2.10, 260_000, 0.2)]
    assert words not in choose(apart, DENSE, SelectSpec()).sentence


def test_within_epsilon_the_better_quality_decides() -> None:
    trials = [
        trial("smallest", 2.26, 711_000, 20.0),
        trial("hardly larger", 2.24, 712_000, 20.0),
        trial("dominated by little", 2.2401, 712_500, 20.0),
        trial("larger", 2.20, 800_000, 20.0),
    ]
    assert choose(trials, DENSE, SelectSpec()).key == "smallest"
    tolerant = choose(trials, DENSE, SelectSpec(epsilon=0.01))
    assert tolerant.key == "hardly larger"
    assert tolerant.front == ["larger", "hardly larger", "smallest"]
    assert "of 4 front models" in tolerant.sentence
    # for the best in quality the size decides
    assert choose(trials[1:], DENSE, SelectSpec(then="best", epsilon=0.03)).key == "hardly larger"


@pytest.mark.parametrize(
    ("fields", "drop"),
    [
        ({}, 0.1),
        ({"require": ["speedup > 1", "quality_drop <= 4%", "quality_drop < 6%"]}, 0.04),
        ({"require": ["quality_drop >= 1%", "quality_drop <= 0%"]}, 0.1),
        ({"require": ["quality_drop <= 4%"], "reference_drop": 0.2}, 0.2),
    ],
)
def test_the_reference_is_what_the_rules_still_take(fields: dict, drop: float) -> None:
    assert reference_drop(SelectSpec(**fields)) == drop


def test_an_amount_is_a_limit_too() -> None:
    trials = [trial("a", 2.2, 200_000, 20.0), trial("b", 2.1, 400_000, 25.0)]
    select = SelectSpec(require=["parameters <= 300 k"], then="best")
    choice = choose(trials, DENSE, select)
    assert choice.key == "a"
    nothing = choose(trials, DENSE, SelectSpec(require=["parameters <= 150 k"]))
    assert "parameters is 200 k, 50.0 k from the required parameters <= 150 k" in nothing.sentence


def test_a_single_candidate_has_no_runner_up() -> None:
    sentence = choose([trial("a", 2.0, 200_000)], DENSE, SelectSpec()).sentence
    assert "the only one of 1 front model." in sentence
    assert "(4.9% better)" in sentence
    assert "speed not measured" in sentence
    assert "Runner-up" not in sentence


def test_nothing_passes_names_the_nearest_and_what_it_missed() -> None:
    trials = [trial("near", 2.17, 400_000, 80.0), trial("far", 2.4, 200_000, 50.0)]
    choice = choose(trials, DENSE, SelectSpec(require=["quality_drop <= 2%", "speedup >= 1.3"]))
    assert choice.key is None
    assert choice.front == ["near", "far"]
    assert choice.passed == []
    assert choice.sentence == (
        "No model was chosen: none of 2 front models passes every rule. Nearest is density 0.3, "
        "penalty_lr 0.1 (near): quality_drop is 3.1%, 1.1 points from the required "
        "quality_drop <= 2% and speedup is 1.25x, 0.05x from the required speedup >= 1.3."
    )


def test_an_unmeasured_figure_is_named() -> None:
    select = SelectSpec(require=["speedup >= 1.3 @ batch 32"])
    sentence = choose([trial("a", 2.2, 200_000)], DENSE, select).sentence
    assert "speedup >= 1.3 @ batch 32 was not measured" in sentence


def test_a_dominated_trial_that_passes_is_mentioned() -> None:
    fewer_matrices = replace(dense_size("language-modelling"), num_parameters=300_000)
    fewer_matrices = replace(fewer_matrices, num_prunable=fewer_matrices.num_prunable // 5)
    trials = [
        trial("front", 2.1, 200_000),
        replace(trial("dominated", 2.2, 300_000), size=fewer_matrices),
    ]
    choice = choose(trials, DENSE, SelectSpec(require=["density <= 30%"]))
    assert choice.key is None
    assert choice.passed == ["dominated"]
    assert "(1 dominated trial off the front would pass.)" in choice.sentence


def test_fastest_without_a_measurement() -> None:
    choice = choose([trial("a", 2.2, 200_000)], DENSE, SelectSpec(then="fastest"))
    assert choice.key is None
    assert "`fastest` cannot rank the 1 front model that passed" in choice.sentence


def test_no_trials() -> None:
    choice = choose([], DENSE, SelectSpec())
    assert (choice.key, choice.front, choice.passed) == (None, [], [])
    assert "no trial finished" in choice.sentence

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowrank import DensityError, LayerShape, LowRankError, project

# Oracles below work with plain (in, out) pairs and rationals, not with the library's counting.


def stored(size, rank):
    rows, columns = size
    return min(rows * columns, rank * (rows + columns))


def total_stored(sizes, ranks):
    return sum(stored(size, rank) for size, rank in zip(sizes, ranks, strict=True))


def budget_of(sizes, density):
    return density * sum(rows * columns for rows, columns in sizes)  # a Fraction, not rounded


def floors(sizes, min_rank):
    return [min(min_rank, *size) for size in sizes]


def call(sizes, scores, density, min_rank=1):
    names = [f"layer{number}" for number in range(len(sizes))]
    return project(
        {name: torch.tensor(values) for name, values in zip(names, scores, strict=True)},
        {name: LayerShape(*size) for name, size in zip(names, sizes, strict=True)},
        float(density),
        min_rank,
    )


@st.composite
def problems(draw, most_layers=4, most_size=8):
    """Sizes, scores with ties, density, minimum rank; the floor always fits."""
    side = st.integers(1, most_size)
    sizes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=most_layers))
    scores = [
        draw(st.lists(st.integers(-3, 3).map(float), min_size=min(size), max_size=min(size)))
        for size in sizes
    ]
    min_rank = draw(st.sampled_from([1, 1, 2, 3]))
    needed = total_stored(sizes, floors(sizes, min_rank)) / budget_of(sizes, Fraction(1))
    density = Fraction(draw(st.integers(math.ceil(40 * needed), 40)), 40)
    return sizes, scores, density, min_rank


def slow_greedy(sizes, scores, density, min_rank):
    """Ranks: again and again add the best next component that fits, until none does."""
    ranks = floors(sizes, min_rank)
    ordered = [sorted(values, reverse=True) for values in scores]
    while True:
        best = None
        for layer, size in enumerate(sizes):
            if ranks[layer] == min(size):
                continue
            longer = [rank + (other == layer) for other, rank in enumerate(ranks)]
            if total_stored(sizes, longer) > budget_of(sizes, density):
                continue
            score = ordered[layer][ranks[layer]]
            if best is None or score > best[0]:
                best = (score, longer)
        if best is None:
            return ranks
        ranks = best[1]


def exhaustive(sizes, scores, density, min_rank):
    """Ranks: of all that fit, those that keep the best component, then the second best, ..."""
    components = sorted(
        (-score, layer, position)
        for layer, values in enumerate(scores)
        for position, score in enumerate(sorted(values, reverse=True))
    )
    choices = [
        range(least, min(size) + 1)
        for least, size in zip(floors(sizes, min_rank), sizes, strict=True)
    ]
    fitting = [
        ranks
        for ranks in itertools.product(*choices)
        if total_stored(sizes, ranks) <= budget_of(sizes, density)
    ]
    return list(
        max(fitting, key=lambda ranks: [place < ranks[layer] for _, layer, place in components])
    )


@given(problem=problems())
@settings(deadline=None, max_examples=200)
def test_the_ranks_are_those_of_the_slow_greedy_rule(problem):
    assert list(call(*problem).ranks.values()) == slow_greedy(*problem)


@given(problem=problems(most_layers=3, most_size=5))
@settings(deadline=None, max_examples=150)
def test_the_ranks_are_the_best_of_an_exhaustive_search(problem):
    assert list(call(*problem).ranks.values()) == exhaustive(*problem)


@given(problem=problems())
@settings(deadline=None, max_examples=200)
def test_the_budget_is_met_and_nothing_left_out_would_fit(problem):
    sizes, _, density, min_rank = problem
    result = call(*problem)
    ranks = list(result.ranks.values())
    kept, allowed = total_stored(sizes, ranks), budget_of(sizes, density)
    assert kept <= allowed
    assert result.density == float(kept) / sum(rows * columns for rows, columns in sizes)
    for layer, size in enumerate(sizes):
        assert ranks[layer] >= min(min_rank, *size)
        if ranks[layer] < min(size):
            longer = [rank + (other == layer) for other, rank in enumerate(ranks)]
            assert total_stored(sizes, longer) > allowed
        if stored(size, ranks[layer]) == size[0] * size[1]:
            assert ranks[layer] == min(size)  # dense comes back whole


@given(problem=problems())
@settings(deadline=None, max_examples=100)
def test_each_layer_keeps_its_best_components(problem):
    _, scores, _, _ = problem
    for values, mask in zip(scores, call(*problem).keep.values(), strict=True):
        assert mask.dtype == torch.bool
        assert mask.shape == (len(values),)
        kept = [score for score, stays in zip(values, mask.tolist(), strict=True) if stays]
        left = [score for score, stays in zip(values, mask.tolist(), strict=True) if not stays]
        assert min(kept) >= max(left, default=-10)


def test_layers_compete_for_one_budget():
    sizes = [(10, 10), (10, 10)]
    scores = [[9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0], [-1.0 - k for k in range(10)]]
    result = call(sizes, scores, Fraction(1, 2))
    assert list(result.ranks.values()) == [4, 1]  # 5 * 20 of 200, the floor included


def test_what_the_floor_keeps_does_not_count_for_the_next_component():
    # both have their two; of the third ones, the second layer's is better
    scores = [[9.0, 8.0] + [-5.0] * 8, [1.0, 1.0] + [0.0] * 8]
    result = call([(10, 10), (10, 10)], scores, Fraction(1, 2), min_rank=2)
    assert list(result.ranks.values()) == [2, 3]


def test_of_equal_components_the_first_stay():
    # components come in order of singular value
    result = call([(200, 200)], [[0.5] * 200], Fraction(1, 4))
    assert torch.equal(result.keep["layer0"], torch.arange(200) < 25)


def test_a_high_score_reopens_a_layer_no_more_once_one_did_not_fit():
    # the second layer's components cost 4 each, so they use up what the first one's cannot
    sizes, scores = [(9, 9), (2, 2)], [[5.0] * 9, [1.0, 1.0]]
    result = call(sizes, scores, Fraction(40, 85))
    assert list(result.ranks.values()) == [2, 2]
    assert result.density == 40 / 85


def test_full_density_keeps_everything():
    result = call([(4, 7), (3, 3), (1, 5)], [[0.0] * 4, [-9.0] * 3, [2.0]], Fraction(1))
    assert list(result.ranks.values()) == [4, 3, 1]
    assert result.density == 1


def test_a_layer_past_break_even_comes_back_whole():
    # break-even rank 1: the second component costs 1, the third nothing, whatever its score
    result = call([(3, 3), (20, 20)], [[5.0, 4.0, -99.0], [0.0] * 20], Fraction(60, 409))
    assert list(result.ranks.values()) == [3, 1]
    assert result.keep["layer0"].all()


@given(problem=problems(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_below_the_floor_the_message_gives_a_density_that_works(problem, data):
    sizes, scores, _, min_rank = problem
    floor = total_stored(sizes, floors(sizes, min_rank))
    total = sum(rows * columns for rows, columns in sizes)
    assume(floor > 1)
    short = data.draw(st.integers(1, floor - 1))
    with pytest.raises(DensityError, match=f"rank {min_rank} in each of {len(sizes)}") as error:
        call(sizes, scores, Fraction(short, total), min_rank)
    least = float(re.search(r"density >= ([0-9.]+) must hold", str(error.value)).group(1))
    assert least == pytest.approx(floor / total, abs=1e-6)
    result = call(sizes, scores, least, min_rank)
    for rank, wanted in zip(result.ranks.values(), floors(sizes, min_rank), strict=True):
        assert rank >= wanted


@pytest.mark.parametrize("density", [0, 1.5, float("nan")])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(DensityError, match="0 < density <= 1"):
        project({"a": torch.zeros(2)}, {"a": LayerShape(2, 2)}, density)


def test_a_density_error_is_a_value_error_of_the_library():
    assert issubclass(DensityError, ValueError)
    assert issubclass(DensityError, LowRankError)

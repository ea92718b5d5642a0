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
from lowrank.currency import ScaledCost, TableCost
from lowrank.density import LinearCost
from lowrank.projection import _take_by_threshold, _take_in_turn, floor_units

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
    with pytest.raises(
        DensityError, match=f"each of {len(sizes)} layers at its floor, {min_rank} of"
    ) as error:
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


# --- other costs than ranks in parameters


def score_lists(draw, sizes, low=-3):
    return [
        torch.tensor(draw(st.lists(st.integers(low, 3).map(float), min_size=n, max_size=n)))
        for n in sizes
    ]


@st.composite
def tables(draw):
    """A cost at every rank: anything that does not fall."""
    steps = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    steps[draw(st.integers(0, len(steps) - 1))] += 1
    return TableCost(tuple(float(value) for value in itertools.accumulate([0, *steps])))


@st.composite
def linear_costs(draw):
    cost = LinearCost(draw(st.integers(1, 9)), draw(st.integers(1, 7)))
    return draw(st.sampled_from([cost, ScaledCost(cost, 0.25), ScaledCost(cost, 3.0)]))


@st.composite
def general_problems(draw, costs, low=-3):
    """Scores, costs, density, floors, by name; the floors always fit."""
    listed = draw(st.lists(costs, min_size=1, max_size=4))
    named = {f"layer{number}": cost for number, cost in enumerate(listed)}
    values = score_lists(draw, [cost.num_units for cost in listed], low)
    floors = {name: draw(st.integers(0, 2)) for name in named}
    needed = sum(cost.cost(min(floors[n], cost.num_units)) for n, cost in named.items())
    total = sum(cost.dense_cost for cost in listed)
    density = draw(st.integers(max(1, math.ceil(40 * needed / total)), 40)) / 40
    return dict(zip(named, values, strict=True)), named, density, floors


@given(problem=general_problems(st.one_of(tables(), linear_costs())))
@settings(deadline=None, max_examples=200)
def test_any_cost_is_held_to_the_budget_and_nothing_left_out_fits(problem):
    scores, costs, density, floors = problem
    result = project(*problem)
    total = sum(cost.dense_cost for cost in costs.values())
    spent = {name: costs[name].cost(rank) for name, rank in result.ranks.items()}
    room = density * total - sum(spent.values())
    assert room >= -1e-9
    assert result.density == sum(spent.values()) / total
    for name, cost in costs.items():
        rank, mask = result.ranks[name], result.keep[name]
        assert rank >= min(floors[name], cost.num_units)
        if rank < cost.num_units:
            assert cost.cost(rank + 1) - spent[name] > room - 1e-9
        if 0 < rank < cost.num_units:
            assert scores[name][mask].min() >= scores[name][~mask].max()


@given(problem=general_problems(linear_costs()))
@settings(deadline=None, max_examples=200)
def test_the_threshold_chooses_what_one_unit_after_the_other_would(problem):
    scores, costs, density, floors = problem
    kept = floor_units(costs, density, floors)
    fast = _take_by_threshold(scores, costs, density, kept)
    slow = _take_in_turn(scores, costs, density, kept)
    public = project(*problem).keep
    for name in costs:
        assert torch.equal(fast[name], slow[name])
        assert torch.equal(fast[name], public[name])


@given(problem=general_problems(st.integers(1, 5).map(lambda n: LinearCost(n, 3)), low=0))
@settings(deadline=None, max_examples=150)
def test_units_of_one_cost_keep_the_largest_total_of_scores(problem):
    scores, costs, density, floors = problem
    result = project(*problem)
    best = -1.0
    choices = [range(min(floors[n], c.num_units), c.num_units + 1) for n, c in costs.items()]
    ordered = {name: score.sort(descending=True).values for name, score in scores.items()}
    affordable = int(density * sum(cost.num_units for cost in costs.values()) + 1e-9)
    for counts in itertools.product(*choices):
        if sum(counts) <= affordable:
            taken = zip(ordered.values(), counts, strict=True)
            best = max(best, sum(float(score[:count].sum()) for score, count in taken))
    assert sum(float(scores[name][mask].sum()) for name, mask in result.keep.items()) == best


def test_a_table_whose_ends_are_those_of_a_line_is_no_line():
    # the first unit costs 8 of 10, not 10 / 3
    costs = {"a": TableCost((0.0, 8.0, 9.0, 10.0)), "b": LinearCost(10, 1)}
    scores = {"a": torch.tensor([3.0, 3.0, 3.0]), "b": torch.arange(10).float() / 10}
    result = project(scores, costs, 0.5, floors=0)
    assert result.ranks == {"a": 3, "b": 0}
    assert result.density == 0.5
    result = project(scores, costs, 0.35, floors=0)
    assert result.ranks == {"a": 0, "b": 7}


def test_millions_of_weights_are_chosen_by_their_size():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(1_000_000, generator=generator) for name in "ab"}
    costs = dict.fromkeys("ab", LinearCost(1_000_000, 1))
    keep = project(scores, costs, 0.25).keep
    mask, values = torch.cat([keep["a"], keep["b"]]), torch.cat([scores["a"], scores["b"]])
    assert int(mask.sum()) == 500_000
    assert values[mask].min() >= values[~mask].max()


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.7, 1 / 3])
def test_a_budget_that_comes_out_even_is_used_up(factor):
    # units that float32 would round, in either direction
    costs = {"a": ScaledCost(LinearCost(10, 1), factor), "b": ScaledCost(LinearCost(6, 2), factor)}
    scores = {"a": torch.ones(10), "b": torch.zeros(6)}
    projection = project(scores, costs, 10 / 22 + 4 / 22)
    assert projection.ranks == {"a": 10, "b": 2}
    assert projection.density == pytest.approx(14 / 22, abs=1e-12)


def test_floors_may_differ_from_layer_to_layer():
    costs = {"a": LayerShape(10, 10), "b": LayerShape(10, 10)}
    scores = {"a": torch.zeros(10), "b": torch.ones(10)}
    assert project(scores, costs, 0.5, {"a": 3, "b": 1}).ranks == {"a": 3, "b": 2}
    with pytest.raises(DensityError, match=r"density >= 0\.600000 must hold"):
        project(scores, costs, 0.5, {"a": 3, "b": 3})

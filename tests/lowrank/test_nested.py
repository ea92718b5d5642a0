"""Projections that lie within each other, by the definition: subsets, budgets, nothing left out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowrank import DensityError, LayerShape, project
from lowrank.alignment import aligned
from lowrank.nested import nested_projections, project_within


@st.composite
def problems(draw):
    """Sizes of layers, scores with ties, falling densities that the floors fit."""
    side = st.integers(2, 12)
    sizes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=4))
    scores = {
        f"layer{n}": torch.tensor(
            draw(st.lists(st.integers(-3, 3).map(float), min_size=min(s), max_size=min(s)))
        )
        for n, s in enumerate(sizes)
    }
    multiple = draw(st.sampled_from([1, 1, 2]))
    costs = {f"layer{n}": aligned(LayerShape(*s), multiple) for n, s in enumerate(sizes)}
    total = sum(cost.dense_cost for cost in costs.values())
    least = math.ceil(1000 * sum(cost.cost(1) for cost in costs.values()) / total) / 1000
    densities = draw(st.lists(st.integers(0, 50), min_size=2, max_size=5, unique=True))
    assume(least < 1)
    spread = (min(1.0, least + (1 - least) * d / 50) for d in densities)
    return scores, costs, sorted(spread, reverse=True)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_what_stays_at_a_lower_density_stayed_at_every_higher_one(problem):
    scores, costs, densities = problem
    floors = [dict.fromkeys(costs, 1)] * len(densities)
    found = nested_projections(scores, costs, densities, floors)
    for density, projection in zip(densities, found, strict=True):
        spent = sum(costs[n].cost(rank) for n, rank in projection.ranks.items())
        total = sum(cost.dense_cost for cost in costs.values())
        assert spent <= density * total * (1 + 1e-9)
        assert projection.density == pytest.approx(spent / total)
        assert all(rank >= 1 for rank in projection.ranks.values())
    for higher, lower in pairwise(found):
        for name, keep in lower.keep.items():
            assert not (keep & ~higher.keep[name]).any()
    # the first has nothing to lie within
    plain = project(scores, costs, densities[0])
    assert all(torch.equal(found[0].keep[name], mask) for name, mask in plain.keep.items())


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_component_of_the_density_above_would_still_fit(problem):
    scores, costs, densities = problem
    higher, lower = nested_projections(scores, costs, densities[:2], [dict.fromkeys(costs, 1)] * 2)
    total = sum(cost.dense_cost for cost in costs.values())
    spent = sum(costs[n].cost(rank) for n, rank in lower.ranks.items())
    for name, rank in lower.ranks.items():
        if rank < higher.ranks[name]:
            more = costs[name].cost(rank + 1) - costs[name].cost(rank)
            assert spent + more > densities[1] * total * (1 - 1e-9)


def test_projections_by_themselves_need_not_be_nested():
    """What makes the property worth a function: the cheap unit fills up what is left."""
    scores = {"wide": torch.tensor([5.0, 4.0]), "thin": torch.tensor([3.0, 2.0])}
    costs = {"wide": LayerShape(20, 20), "thin": LayerShape(4, 4)}
    for cost in costs.values():
        assert cost.unit_cost < cost.dense_cost
    # 416 in all: at 0.2 two wide ones and nothing else, at 0.18 one wide and two thin
    high, low = (project(scores, costs, d, 0).ranks for d in (0.2, 0.18))
    assert (high, low) == ({"wide": 2, "thin": 0}, {"wide": 1, "thin": 2})
    floors = [dict.fromkeys(costs, 0)] * 2
    nested = nested_projections(scores, costs, [0.2, 0.18], floors)
    assert nested[1].ranks == {"wide": 1, "thin": 0}


def test_densities_that_rise_are_refused():
    scores, costs = {"a": torch.zeros(4)}, {"a": LayerShape(4, 4)}
    with pytest.raises(ValueError, match=r"densities must fall, got \[0.5, 0.5\]"):
        nested_projections(scores, costs, [0.5, 0.5], [{"a": 0}] * 2)


def test_floors_count_and_a_budget_below_them_is_refused():
    scores, costs = {"a": torch.arange(8.0)}, {"a": LayerShape(16, 16)}
    within = {"a": torch.tensor([True] * 4 + [False] * 4)}
    kept = project_within(scores, costs, 0.3, {"a": 2}, within)
    assert kept.keep["a"].tolist() == [False, False, True, True] + [False] * 4
    with pytest.raises(DensityError, match=r"density >= 0.375000 must hold"):
        project_within(scores, costs, 0.3, {"a": 3}, within)

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank import Adaptive, FixedRank, FlopAgp, FlopL0, LayerShape, LowRankError, Pruner, project
from lowrank.alignment import AlignedCost, aligned, rank_multiple, rounded_up
from lowrank.currency import TableCost
from lowrank.linear import LowRankLinear
from lowrank.moments import collect_moments

STEPS = 6
METHODS = {
    "adaptive": lambda **f: Adaptive(gated_steps=STEPS, **f),
    "uniform": lambda **f: FixedRank(**f),
    "greedy": lambda **f: FixedRank(allocation="greedy", **f),
    "flop-l0": lambda **f: FlopL0(gated_steps=STEPS, **f),
    "flop-agp": lambda **f: FlopAgp(gated_steps=STEPS, **f),
}


def body(seed=0):
    """Three shapes; break-even ranks 31, 38, 38."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 96), nn.Linear(96, 64))


def pruned(make, steps=STEPS, **fields):
    model, inputs = body(), torch.randn(80, 64)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    collected = collect_moments(model, layers, [{"input": inputs}])
    moments = {name: each.moments() for name, each in collected.items()}
    pruner = Pruner(model, make(**fields), moments=moments)
    optimizer = torch.optim.Adam(pruner.parameter_groups(1e-2))
    for _ in range(steps if pruner.method.gated_steps else 0):
        (pruner.model(inputs).square().mean() + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    return pruner


class TestAlignedCost:
    @given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 9), st.integers(0, 40))
    def test_is_the_cost_of_the_next_multiple(self, width, height, multiple, kept):
        shape = LayerShape(width, height)
        kept = min(kept, shape.full_rank)
        ranks = [r for r in range(shape.full_rank + 1) if r % multiple == 0]
        above = min([r for r in ranks if r >= kept], default=shape.full_rank)
        cost = AlignedCost(shape, multiple)
        assert cost.cost(kept) == min(width * height, above * (width + height))
        assert cost.expected(kept) == shape.expected(kept)
        assert cost.dense_cost == cost.cost(shape.full_rank) == width * height

    def test_of_one_is_the_cost_itself(self):
        shape = LayerShape(4, 4)
        assert aligned(shape, 1) is shape

    def test_on_a_table_of_seconds(self):
        table = TableCost.of_factors([1.0, 2.0, 3.0, 4.0, 5.0], dense=5.0)
        assert [AlignedCost(table, 2).cost(k) for k in range(6)] == [0, 2, 2, 4, 4, 5]


class TestRankMultiple:
    @pytest.mark.parametrize(
        ("width", "density", "multiple"),
        # uniform ranks 115.2, 64, 48, 19.2, 16, 8, 4
        [(768, 0.3, 8), (256, 0.5, 8), (192, 0.5, 4), (384, 0.1, 2), (320, 0.1, 2), (160, 0.1, 1)],
    )
    def test_is_the_hardware_s_unless_ranks_are_small(self, width, density, multiple):
        assert rank_multiple(LayerShape(width, width), density, None) == multiple

    def test_is_what_was_asked_for_up_to_break_even(self):
        assert rank_multiple(LayerShape(64, 64), 0.5, 16) == 16
        assert rank_multiple(LayerShape(8, 8), 0.5, 16) == 3

    def test_below_one_is_refused(self):
        with pytest.raises(LowRankError, match="rank_multiple >= 1 must hold, got 0"):
            Adaptive(density=0.5, rank_multiple=0)


class TestProjection:
    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.sampled_from([2, 3, 4, 8]), st.sampled_from([0.3, 0.5, 0.8]))
    def test_ends_on_multiples_and_leaves_no_room_for_another(self, seed, multiple, density):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"a": LayerShape(80, 48), "b": LayerShape(48, 48), "c": LayerShape(48, 128)}
        costs = {name: AlignedCost(shape, multiple) for name, shape in shapes.items()}
        scores = {n: torch.randn(s.full_rank, generator=generator) for n, s in shapes.items()}
        ranks = project(scores, costs, density).ranks
        total = sum(s.in_features * s.out_features for s in shapes.values())

        def stored(counts):
            return sum(shapes[n].num_parameters(r) for n, r in counts.items())

        assert stored(ranks) <= density * total
        for name, rank in ranks.items():
            shape = shapes[name]
            is_dense = shape.num_parameters(rank) == shape.num_dense
            assert rank % multiple == 0 or is_dense
            more = min(rank + multiple, shape.full_rank)
            if not is_dense:
                assert stored(ranks | {name: more}) > density * total


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("density", [0.3, 0.6])
def test_every_factorizing_method_ends_on_multiples(name, density):
    pruner = pruned(METHODS[name], density=density, rank_multiple=4)
    num_dense = pruner.num_dense
    projection = pruner.project()
    small = pruner.finish(projection)
    layers = [m for m in small.modules() if isinstance(m, nn.Linear)]
    factors = [layer for layer in layers if isinstance(layer, LowRankLinear)]
    assert factors
    assert all(layer.rank % 4 == 0 for layer in factors)
    stored = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)
    assert stored == projection.density * num_dense
    assert stored <= density * num_dense


def test_ranks_are_free_where_it_is_asked_for():
    pruner = pruned(METHODS["uniform"], density=0.5, rank_multiple=1)
    assert pruner.project().ranks == {"0": 16, "2": 19, "3": 19}


def test_the_published_rounding_has_no_multiples():
    method = FlopL0.faithful(density=0.5, gated_steps=STEPS, rank_multiple=8)
    assert method.multiple(LayerShape(768, 768)) == 1


def test_rounding_up():
    assert [rounded_up(k, 4) for k in (0, 1, 4, 5)] == [0, 4, 4, 8]

"""Who is ahead of whom at a rung, against brute force."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.stopping.judge import Figures, judge, place_of_last, spread_order

# few different values, so that rows tie and ranks have several members
POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=14)


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def ranks_by_peeling(points: list[tuple[float, ...]]) -> list[int]:
    ranks, left = [-1] * len(points), set(range(len(points)))
    for rank in range(len(points)):
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            ranks[i] = rank
        left -= front
    return ranks


def exact_order(points: list[tuple[Fraction, ...]]) -> list[int]:
    """Farthest first, with squared distances in exact arithmetic."""
    order = [min(range(len(points)), key=lambda i: (points[i][0], i))]
    while len(order) < len(points):
        left = [i for i in range(len(points)) if i not in order]
        far = {
            i: min(
                sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True)) for j in order
            )
            for i in left
        }
        order.append(max(left, key=lambda i: (far[i], -i)))
    return order


def scaled(points: list[tuple[int, ...]]) -> list[tuple[Fraction, ...]]:
    columns = list(zip(*points, strict=True))
    lows = [min(column) for column in columns]
    spans = [max(column) - min(column) or 1 for column in columns]
    return [
        tuple(Fraction(v - low, span) for v, low, span in zip(p, lows, spans, strict=True))
        for p in points
    ]


@given(POINTS)
@settings(deadline=None, max_examples=300)
def test_the_place_is_that_of_brute_force(points: list[tuple[int, int]]):
    ranks = ranks_by_peeling([tuple(map(float, p)) for p in points])
    last = len(points) - 1
    alike = [i for i in range(len(points)) if ranks[i] == ranks[last]]
    all_scaled = scaled(points)
    order = exact_order([all_scaled[i] for i in alike])
    ahead = sum(rank < ranks[last] for rank in ranks)
    rank, place = place_of_last(points)
    assert rank == ranks[last]
    expected = ahead + 1 + [alike[i] for i in order].index(last)
    # two candidates that are equally far in exact arithmetic may differ in the last bit
    assert place == expected or _tied(points, alike, place - ahead - 1, expected - ahead - 1)


def _tied(points: list[tuple[int, int]], alike: list[int], one: int, other: int) -> bool:
    rows = np.array([scaled(points)[i] for i in alike], dtype=float)
    order = spread_order(rows)
    gaps = [
        np.linalg.norm(rows[i] - rows[order[:n]], axis=1).min()
        for n, i in enumerate(order)
        if n > 0
    ]
    low, high = sorted((one, other))
    return low > 0 and bool(np.ptp(gaps[low - 1 : high]) < 1e-9)


@given(POINTS, st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_who_is_dominated_is_behind_who_dominates(
    points: list[tuple[int, int]], worse: int, larger: int
):
    """A row that is dominated by all others comes last."""
    last = (6 + worse, 4 + larger)
    assert place_of_last([*points, last])[1] == len(points) + 1


def test_the_order_of_a_front_is_spread():
    front = [(0.0, 1.0), (0.1, 0.9), (0.5, 0.5), (0.9, 0.1), (1.0, 0.0)]
    assert spread_order(front) == [0, 4, 2, 1, 3]
    # copies of a point add nothing, and come last
    assert spread_order([(0, 1), (0, 1), (1, 0)]) == [0, 2, 1]


def test_what_is_infinite_is_very_bad_and_no_error():
    assert place_of_last([(1.0, 0.5), (math.inf, 0.5)]) == (1, 2)
    assert place_of_last([(math.inf, 0.5), (1.0, 0.5)]) == (0, 1)
    # at the smallest size it is on the front, and behind who is there with a loss
    assert place_of_last([(2.0, 0.5), (math.inf, 0.1), (1.0, 0.5)])[0] == 0
    assert place_of_last([(math.inf, 0.5)]) == (0, 1)
    assert place_of_last([(math.inf, 0.5), (math.inf, 0.5)]) == (0, 2)


def at(loss: float, density: float = 0.5, excess: float = 0.0, method: str = "m") -> Figures:
    return Figures(cell=(method, density), loss=loss, excess=excess)


def test_half_of_a_rung_goes_on():
    others = [at(loss) for loss in (1.0, 2.0, 3.0)]
    verdicts = [judge(at(loss), others, 0.5, 4) for loss in (0.5, 1.5, 2.5, 9.0)]
    assert [(v.kept, v.place) for v in verdicts] == [(True, 1), (True, 2), (False, 3), (False, 4)]
    assert verdicts[2].reason == "place 3 of 4 by rank and spread, 2 go on"
    assert verdicts[2].rank == 2
    # rounded up
    assert judge(at(2.5), [*others, at(4.0)], 0.5, 4).kept
    assert not judge(at(2.5), others, 0.25, 4).kept
    assert judge(at(2.5), others, 0.75, 4).kept


def test_few_stop_nobody():
    assert judge(at(9.0), [at(1.0), at(2.0)], 0.5, 4).kept
    assert not judge(at(9.0), [at(1.0), at(2.0)], 0.5, 3).kept


def test_size_counts_as_much_as_quality():
    """One metric would stop the smaller models, which are worse and on the front."""
    others = [at(1.0, 0.5), at(1.1, 0.5), at(1.2, 0.5), at(2.0, 0.1), at(2.2, 0.1)]
    assert judge(at(2.1, 0.1), others, 0.5, 4).rank == 1
    assert judge(at(2.1, 0.1), [*others, at(9.0, 0.5)], 0.5, 4).kept
    assert not judge(at(1.3, 0.5), others, 0.5, 4).kept


def test_who_is_ahead_in_its_cell_goes_on_however_far_behind_others_it_is():
    others = [at(float(loss), method="strong") for loss in range(1, 7)]
    first = judge(at(50.0, method="weak"), others, 0.5, 4)
    assert (first.kept, first.place, first.reason) == (True, 7, "ahead at density 0.5")
    weak = [*others, at(50.0, method="weak")]
    assert judge(at(49.0, method="weak"), weak, 0.5, 4).kept
    # an equal is not behind
    assert judge(at(50.0, method="weak"), weak, 0.5, 4).kept
    assert not judge(at(51.0, method="weak"), weak, 0.5, 4).kept
    # another density of the method is another cell
    assert judge(at(51.0, density=0.6, method="weak"), weak, 0.5, 4).kept


def test_a_size_that_is_missed_for_good_stops_where_others_have_met_it():
    verdict = judge(at(0.1, excess=0.2), [at(5.0)], 0.9, 100)
    assert not verdict.kept
    assert "exceeded by 0.200" in verdict.reason
    # as long as nobody has met it there is nothing to compare with
    assert judge(at(0.1, excess=0.2), [at(5.0, excess=0.1)], 0.9, 100).kept
    assert judge(at(0.1, excess=0.2), [at(5.0, density=0.4)], 0.9, 100).kept


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([0.2, 0.5]), st.integers(0, 9)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([0.25, 0.5, 0.75]),
    st.integers(2, 6),
)
@settings(deadline=None, max_examples=150)
def test_the_best_of_each_cell_always_goes_on(
    arrivals: list[tuple[str, float, int]], keep: float, at_least: int
):
    there: list[Figures] = []
    kept: dict[tuple[str, float], list[float]] = {}
    for method, density, loss in arrivals:
        mine = at(float(loss), density, method=method)
        if judge(mine, there, keep, at_least).kept:
            kept.setdefault(mine.cell, []).append(mine.loss)
        there.append(mine)
    best: dict[tuple[str, float], float] = {}
    for each in there:
        best[each.cell] = min(each.loss, best.get(each.cell, math.inf))
    assert {cell: min(losses) for cell, losses in kept.items()} == best


def test_losses_must_be_rows():
    with pytest.raises(ValueError, match="must be"):
        place_of_last([1.0, 2.0])

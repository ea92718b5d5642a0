"""Fronts, ranks and volumes against brute force, on small integers so that ties occur."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import product
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from orchestrator.pareto import (
    hypervolume,
    knee,
    knee_distances,
    largest_batch,
    loss_values,
    nondomination_rank,
    pareto_front,
)
from tests.orchestrator.record_factory import make_dense, make_speed, make_trial, make_trials

small = st.integers(0, 4).map(float)
extended = small | st.sampled_from([math.inf, -math.inf, math.nan, -0.0])


def losses(columns: tuple[int, int], elements: st.SearchStrategy[float]) -> st.SearchStrategy:
    shapes = st.tuples(st.integers(0, 12), st.integers(*columns))
    return shapes.flatmap(lambda shape: arrays(float, shape, elements=elements))


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    """NaN compares as false, so a row with a NaN dominates nothing and is not dominated."""
    return bool((a <= b).all() and (a < b).any())


def brute_force_front(points: np.ndarray) -> np.ndarray:
    return np.array(
        [not np.isnan(p).any() and not any(dominates(q, p) for q in points) for p in points],
        dtype=bool,
    )


def brute_force_rank(points: np.ndarray) -> np.ndarray:
    """Peel off one front after the other."""
    ranks = np.full(len(points), len(points))
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    rank = 0
    while len(left):
        front = brute_force_front(points[left])
        ranks[left[front]] = rank
        left, rank = left[~front], rank + 1
    return ranks


def count_cells(points: np.ndarray, reference: tuple[int, ...]) -> int:
    """Unit cells that a point dominates: for integers, the volume."""
    cells = product(*(range(r) for r in reference))
    return sum(any((p <= cell).all() for p in points) for cell in cells)


@settings(deadline=None, max_examples=200)
@given(losses((1, 4), extended))
def test_front_and_rank_agree_with_brute_force(points: np.ndarray) -> None:
    assert pareto_front(points).tolist() == brute_force_front(points).tolist()
    assert nondomination_rank(points).tolist() == brute_force_rank(points).tolist()


def test_textbook_front() -> None:
    #  3 | a . . .      a and d are the ends, b is between them,
    #  2 | . b . e      e is dominated by b, f by b and d
    #  1 | . . . f
    #  0 | . . d .
    points = [(0, 3), (1, 2), (2, 0), (3, 2), (3, 1)]
    assert pareto_front(points).tolist() == [True, True, True, False, False]
    assert nondomination_rank(points).tolist() == [0, 0, 0, 2, 1]


def test_all_copies_of_a_front_point_are_on_the_front() -> None:
    assert pareto_front([[1, 2], [1, 2], [2, 2]]).tolist() == [True, True, False]


def test_nan_is_off_the_front_and_dominates_nothing() -> None:
    points = [[math.nan, 0.0], [1.0, 1.0]]
    assert pareto_front(points).tolist() == [False, True]
    assert nondomination_rank(points).tolist() == [2, 0]
    assert not pareto_front([[math.nan, math.nan]]).any()


def test_infinities_are_ordinary_values() -> None:
    assert pareto_front([[math.inf, 0], [0, math.inf], [math.inf, math.inf]]).tolist() == [
        True, True, False,
    ]  # fmt: skip
    assert pareto_front([[-math.inf, 5], [0, 5]]).tolist() == [True, False]


def test_no_rows_and_bad_shapes() -> None:
    assert pareto_front(np.empty((0, 3))).tolist() == []
    for shape in ((3,), (2, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="must be"):
            pareto_front(np.zeros(shape))


@pytest.mark.parametrize("everything_on_the_front", [False, True])
def test_ten_thousand_points_take_little_time(everything_on_the_front: bool) -> None:
    points = np.random.default_rng(0).random((10_000, 3))
    if everything_on_the_front:
        points[:, 2] = 2 - points[:, :2].sum(axis=1)
    start = time.perf_counter()
    front = pareto_front(points)
    volume = hypervolume(points, [2, 2, 2])
    assert time.perf_counter() - start < 5  # about 0.3 s on an idle core
    assert front.all() == everything_on_the_front
    assert 1 < volume < 8


# --------------------------------------------------------------------------- hypervolume


@settings(deadline=None, max_examples=200)
@given(losses((2, 2), small), st.tuples(*[st.integers(1, 5)] * 2))
def test_area_agrees_with_counted_cells(points: np.ndarray, reference: tuple[int, ...]) -> None:
    assert hypervolume(points, reference) == count_cells(points, reference)


@settings(deadline=None, max_examples=200)
@given(losses((3, 3), small), st.tuples(*[st.integers(1, 5)] * 3))
def test_volume_agrees_with_counted_cells(points: np.ndarray, reference: tuple[int, ...]) -> None:
    assert hypervolume(points, reference) == count_cells(points, reference)


@settings(deadline=None)
@given(losses((2, 3), small))
def test_only_the_front_has_volume(points: np.ndarray) -> None:
    reference = [5.0] * points.shape[1]
    front = points[pareto_front(points)]
    assert hypervolume(points, reference) == hypervolume(front, reference)


def test_closed_forms() -> None:
    assert hypervolume([[0, 0]], [2, 3]) == 6
    assert hypervolume([[0, 0, 0]], [2, 3, 4]) == 24
    n = 100  # a staircase of n steps below the diagonal
    steps = [(i / n, (n - 1 - i) / n) for i in range(n)]
    assert hypervolume(steps, [1, 1]) == pytest.approx((n + 1) / (2 * n))
    prism = [(x, y, 0.5) for x, y in steps]
    assert hypervolume(prism, [1, 1, 1]) == pytest.approx((n + 1) / (4 * n))


def test_volume_of_what_lies_outside_is_zero_and_of_infinity_infinite() -> None:
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0
    assert hypervolume([[1, 0], [2, 2], [math.nan, 0], [math.inf, 0]], [1, 1]) == 0
    assert hypervolume([[-math.inf, 0]], [1, 1]) == math.inf
    assert hypervolume([[0, 0]], [math.inf, 1]) == math.inf


@pytest.mark.parametrize(
    ("points", "reference", "says"),
    [
        ([[0.0]], [1], "m = 2 or 3"),
        ([[0.0] * 4], [1] * 4, "m = 2 or 3"),
        ([[0.0, 0.0]], [1, 1, 1], "m = 2 or 3"),
        ([[0.0, 0.0]], [1, math.nan], "must not be NaN"),
    ],
)
def test_hypervolume_states_its_rules(points: list, reference: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hypervolume(points, reference)


# --------------------------------------------------------------------------- knee


def test_knee_is_farthest_from_the_line_between_the_ends() -> None:
    points = np.array([[0, 10], [1, 3], [4, 2], [10, 0], [11, 11]], dtype=float)
    assert knee(points) == 1
    # distance of (0.1, 0.3) to x + y = 1
    assert knee_distances(points)[1] == pytest.approx(0.6 / math.sqrt(2))
    assert knee_distances(points)[[0, 3]].tolist() == [0, 0]
    assert math.isnan(knee_distances(points)[4])


@settings(deadline=None)
@given(losses((1, 3), extended), st.floats(0.5, 8), st.integers(-3, 3))
def test_knee_does_not_depend_on_units(points: np.ndarray, scale: float, shift: int) -> None:
    np.testing.assert_allclose(
        knee_distances(points), knee_distances(points * scale + shift), atol=1e-9
    )


def test_knee_of_few_points() -> None:
    assert knee([[3.0, 4.0]]) == 0
    assert knee([[1.0, 1.0], [1.0, 1.0]]) == 0
    assert knee([[math.nan, 1.0], [2.0, 2.0]]) == 1
    with pytest.raises(ValueError, match="finite point"):
        knee([[math.nan, 1.0]])


# --------------------------------------------------------------------------- records


def test_columns_are_losses() -> None:
    dense, trials = make_dense(), make_trials()
    losses = loss_values(trials, dense)
    assert losses.shape == (len(trials), 3)
    assert losses[:, 0].tolist() == [t.quality - dense.quality for t in trials]
    assert losses[:, 1].tolist() == [t.size.num_parameters for t in trials]
    reference = median(t.speed[1].dense_ms for t in trials)
    assert losses[:, 2].tolist() == [reference / t.speed[1].speedup for t in trials]


def test_a_busy_machine_does_not_move_the_front() -> None:
    """The same model timed while everything took ten times as long is not a slower model."""
    dense, calm = make_dense(), make_trial(0.3)
    slower = [
        replace(s, dense_ms=10 * s.dense_ms, compressed_ms=10 * s.compressed_ms) for s in calm.speed
    ]
    latencies = loss_values([calm, replace(calm, speed=slower)], dense)[:, 2]
    assert latencies[0] == latencies[1]


def test_a_score_is_turned_round() -> None:
    dense = make_dense("classification", "sst2")
    better = replace(dense, validation={"accuracy": dense.quality + 0.01})
    assert loss_values([better], dense)[0, 0] == pytest.approx(-0.01)


def test_batch_picks_the_latency_and_missing_ones_are_nan() -> None:
    dense = make_dense()
    both = make_trial(0.3)
    small_only = make_trial(0.2, speed=[make_speed(1, 1.3, 6.0)])
    assert largest_batch([both, small_only]) == 32
    reference = median([both.speed[0].dense_ms, 6.0])
    assert loss_values([both, small_only], dense, batch=1)[1, 2] == reference / 1.3
    assert math.isnan(loss_values([both, small_only], dense)[1, 2])


def test_without_any_latency_two_columns_remain() -> None:
    dense = make_dense()
    trials = [make_trial(0.3, speed=[]), make_trial(0.2, speed=[])]
    assert loss_values(trials, dense).shape == (2, 2)
    assert loss_values([], dense).shape == (0, 2)
    assert largest_batch(trials) is None


def test_metrics_do_not_mix() -> None:
    with pytest.raises(ValueError, match="share a metric"):
        loss_values([make_trial()], make_dense("classification", "sst2"))

"""From times to costs, on traces with round numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.plan.figures import Range, at_density
from orchestrator.plan.trace import Evaluation, Trace, cost_of, mean_step
from tests.orchestrator.plan.specs import cost

TRIAL = Trace(
    setting="flop-l0-1",
    density=0.5,
    phases=[("gated", 2), ("finetune", 2)],
    whole_validations=2,
    began=0.0,
    trained=24.5,
    ended=34.5,
    reporting_s=1.0,
    # set-up of 4 s; gated steps of 2 s, a validation of 1 s at their end and another before the
    # projection of 3 s, one of half a second after it; then steps of 1 s and a validation
    beats=[4.0, 6.0, 14.5, 15.5],
    tokens=[8, 8, 8, 8],
    typical_tokens={},
    evaluations=[
        Evaluation(split="validation", began=8.0, ended=9.0, share=1.0),
        Evaluation(split="validation", began=9.0, ended=10.0, share=1.0),
        Evaluation(split="validation", began=14.0, ended=14.5, share=0.5),
        Evaluation(split="validation", began=16.5, ended=17.0, share=0.5),
        Evaluation(split="validation", began=30.0, ended=30.5, share=0.5),
        Evaluation(split="test", began=31.0, ended=32.0, share=0.25),
    ],
    model_bytes={"gated": 10, "finetune": 5},
    state_bytes={"gated": 30, "finetune": 20},
    weights_bytes=5,
    export_bytes=2,
    record_bytes=3,
    point_bytes=1.5,
    memory_bytes=100,
)


def test_every_second_has_its_part():
    found = cost_of(TRIAL)
    assert found.setup_s.value == pytest.approx(4.0)
    assert found.step_s["gated"].value == pytest.approx(2.0)
    assert found.step_s["finetune"].value == pytest.approx(1.0)
    # 8 to 14.5 without three evaluations of 2.5 s
    assert found.projection_s.value == pytest.approx(4.0)
    # 24.5 to 34.5 without evaluations of 1.5 s and a second for the probe's own copy
    assert found.export_s.value == pytest.approx(7.5)
    # a half of the split took half a second
    assert found.validation_s["whole"].value == pytest.approx(1.0)
    assert found.validation_s["small"].value == pytest.approx(1.0)
    assert found.test_s.value == pytest.approx(4.0)


def test_every_training_of_a_campaign_begins_cold():
    assert cost_of(replace(TRIAL, cold_s=2.5)).setup_s.value == pytest.approx(6.5)


def test_without_steps_all_is_set_up():
    trace = replace(TRIAL, phases=[], beats=[], tokens=[], whole_validations=0)
    found = cost_of(trace)
    assert found.step_s == {}
    assert found.setup_s.value == pytest.approx(24.5 - 3.0)


def test_a_method_that_ends_with_its_projection():
    trace = replace(TRIAL, phases=[("gated", 2)], beats=[4.0, 6.0], tokens=[8, 8])
    # 8 to 24.5 without four evaluations of 3 s
    assert cost_of(trace).projection_s.value == pytest.approx(13.5)


def test_the_first_step_of_many_is_left_out():
    assert mean_step([9.0, 1.0, 1.0, 1.0], [4] * 4).value == pytest.approx(1.0)
    assert mean_step([9.0, 1.0], [4] * 2).value > 1.0
    assert mean_step([], []) == Range()


def test_a_disturbance_counts_three_medians_at_most():
    steps = [1.0] * 9 + [500.0]
    assert mean_step([1.0, *steps], [4] * 11).value == pytest.approx((9 + 3) / 10)


def test_steps_of_long_batches_are_put_in_proportion():
    """Seconds are 0.1 + tokens / 100; the campaign's batches have 50 tokens on average."""
    tokens = [10, 20, 30, 20, 10]
    found = mean_step([0.1 + t / 100 for t in tokens], tokens, typical=50.0)
    assert found.value == pytest.approx(0.6)


def test_a_range_is_at_least_the_drift():
    found = mean_step([1.0] * 8, [4] * 8)
    assert (found.low, found.high) == pytest.approx((0.9, 1.1))
    found = mean_step([1.0, *[0.5, 1.5] * 4], [4] * 9)
    assert found.low <= 0.5
    assert found.high >= 1.5


@given(
    st.lists(st.floats(1e-4, 10), min_size=1, max_size=30),
    st.floats(1, 1000),
    st.lists(st.integers(1, 1000), min_size=30, max_size=30),
)
def test_a_mean_step_takes_time_and_lies_in_its_range(
    seconds: list[float], typical: float, tokens: list[int]
):
    found = mean_step(seconds, tokens[: len(seconds)], typical)
    assert found.low <= found.value <= found.high
    assert found.value < 1000 * 3 * max(seconds)


def test_between_two_densities_costs_lie_on_a_line():
    one = replace(cost("a", 0.2), setup_s=Range.around(1.0), weights_bytes=100)
    other = replace(cost("a", 0.6), setup_s=Range.around(3.0), weights_bytes=300)
    middle = at_density([other, one], 0.4)
    assert middle.setup_s.value == pytest.approx(2.0)
    assert (middle.weights_bytes, middle.density) == (200, 0.4)
    assert at_density([one, other], 0.2) == one
    # beyond what was probed nothing is guessed
    assert at_density([one, other], 0.1) == one
    assert at_density([one, other], 0.9) == other


def test_ranges_add_up_end_by_end():
    one, other = Range(value=2, low=1, high=4), Range(value=1, low=0.5, high=1.5)
    assert one + other == Range(value=3, low=1.5, high=5.5)
    assert one * 3 == Range(value=6, low=3, high=12)

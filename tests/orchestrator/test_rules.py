"""Rules: the grammar, its errors, and what each field reads from a record."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.rules import FIELDS, MEASURED, OPERATORS, UNITS, Rule, parse_rule
from tests.orchestrator.record_factory import make_dense, make_size, make_trial

numbers = st.floats(-1e6, 1e6, allow_nan=False) | st.integers(-3, 3).map(float)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    field = draw(st.sampled_from(sorted(FIELDS)))
    batch = draw(st.none() | st.integers(1, 10**6)) if field in MEASURED else None
    unit = draw(st.sampled_from(["", *UNITS.get(field, {})]))
    op = draw(st.sampled_from(sorted(OPERATORS)))
    return Rule(field=field, op=op, value=draw(numbers), unit=unit, batch=batch)


@settings(deadline=None)
@given(rules())
def test_text_and_rule_are_each_others_inverse(rule: Rule) -> None:
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quality_drop <= 2%", Rule(field="quality_drop", op="<=", value=0.02)),
        ("  quality_drop<=2 % ", Rule(field="quality_drop", op="<=", value=0.02)),
        ("density < 0.3", Rule(field="density", op="<", value=0.3)),
        ("parameters <= 110%", Rule(field="parameters", op="<=", value=1.1)),
        ("quality_drop > -1.5%", Rule(field="quality_drop", op=">", value=-0.015)),
        ("bytes <= 5e-1", Rule(field="bytes", op="<=", value=0.5)),
        ("macs <= .5", Rule(field="macs", op="<=", value=0.5)),
        ("speedup >= 1.2", Rule(field="speedup", op=">=", value=1.2)),
        ("latency_ms < 20 @ batch 1", Rule(field="latency_ms", op="<", value=20, batch=1)),
        (
            "latency_p50_ms <= 8 @ batch 1",
            Rule(field="latency_p50_ms", op="<=", value=8, batch=1),
        ),
        ("latency_ms<=8ms@batch 1", Rule(field="latency_ms", op="<=", value=8, unit="ms", batch=1)),
        ("speedup >= 1.2x", Rule(field="speedup", op=">=", value=1.2, unit="x")),
        ("bytes <= 50 MB", Rule(field="bytes", op="<=", value=50e6, unit="MB")),
        ("bytes<=1.5GiB", Rule(field="bytes", op="<=", value=1.5 * 2**30, unit="GiB")),
        ("parameters < 5.5 M", Rule(field="parameters", op="<", value=5.5e6, unit="M")),
        ("macs <= 300 k", Rule(field="macs", op="<=", value=3e5, unit="k")),
        ("speedup>1@batch 32", Rule(field="speedup", op=">", value=1, batch=32)),
    ],
)
def test_forms_that_people_write(text: str, expected: Rule) -> None:
    assert parse_rule(text) == expected


def test_canonical_text() -> None:
    assert str(parse_rule("quality_drop<=0.02")) == "quality_drop <= 2%"
    assert str(parse_rule("speedup >= 1.20 @ batch 32")) == "speedup >= 1.2 @ batch 32"
    assert str(parse_rule("bytes<=0.050GB")) == "bytes <= 0.05 GB"
    assert str(parse_rule("bytes<=2 MiB")) == "bytes <= 2 MiB"
    assert str(parse_rule("latency_ms<8ms@batch 1")) == "latency_ms < 8 ms @ batch 1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not follow the grammar"),
        ("quality_drop 2%", "does not follow the grammar"),
        ("quality_drop == 2%", "does not follow the grammar"),
        ("quality_drop <= two", "does not follow the grammar"),
        ("quality_drop <= 2% and speedup > 1", "does not follow the grammar"),
        ("speedup >= 1.2 @ batch 32.5", "does not follow the grammar"),
        ("qualty_drop <= 2%", "did you mean 'quality_drop'"),
        ("latency <= 2", "did you mean 'latency_ms'"),
        ("size <= 2", "unknown field 'size'"),
        ("quality_drop <= 2% @ batch 32", "does not depend on a batch"),
        ("speedup >= 1.2 @ batch 0", "batch >= 1 must hold, got 0"),
        ("speedup >= 120%", "takes no %"),
        ("quality_drop <= 2", "write 2% or, if 2 times dense is meant, 200%"),
        ("latency_ms <= 1e999", "must be finite"),
        ("bytes <= 50", "an amount needs its unit: B, kB, MB, GB, KiB, MiB, GiB"),
        (
            "bytes <= 50 mb",
            "must be one of B, kB, MB, GB, KiB, MiB, GiB, got 'mb', did you mean 'MB'",
        ),
        ("bytes <= 50 ms", "got 'ms'"),
        ("parameters <= 5 MB", "must be one of k, M, B, got 'MB'"),
        ("latency_ms <= 8 s", "must be one of ms, got 's'"),
        ("quality_drop <= 2 points", "takes a % and no other unit, got 'points'"),
        ("density <= 1 x", "takes a % and no other unit"),
    ],
)
def test_misuse_names_the_rule_and_the_grammar(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="cannot read the rule") as error:
        parse_rule(text)
    message = str(error.value)
    assert says in message
    assert "FIELD OP NUMBER UNIT" in message
    assert all(field in message for field in FIELDS)


def test_each_field_reads_its_figure() -> None:
    dense = make_dense()
    trial = make_trial(0.3, size=make_size("language-modelling", 0.3))

    def value(field: str, batch: int | None = None, unit: str = "") -> float:
        rule = Rule(field=field, op="<=", value=1, batch=batch, unit=unit)
        return rule.value_of(trial, dense)

    assert value("quality_drop") == pytest.approx(trial.quality / dense.quality - 1)
    assert value("density") == pytest.approx(0.3, abs=1e-6)
    assert value("parameters") == trial.size.num_parameters / dense.size.num_parameters
    assert value("bytes") == trial.size.num_bytes / dense.size.num_bytes
    assert value("macs") == trial.size.macs_per_token / dense.size.macs_per_token
    assert value("speedup", 1) == trial.speed[0].speedup
    assert value("speedup") == trial.speed[1].speedup  # the largest batch
    assert value("latency_ms", 32) == trial.speed[1].compressed_ms
    assert value("latency_p50_ms", 32) == value("latency_ms", 32, "ms")
    assert math.isnan(value("speedup", 7))
    assert value("bytes", unit="MB") == trial.size.num_bytes
    assert value("parameters", unit="M") == trial.size.num_parameters
    assert value("macs", unit="k") == trial.size.macs_per_token


def test_dense_against_itself_is_neutral() -> None:
    dense = make_dense("classification", "sst2")
    assert parse_rule("quality_drop <= 0").value_of(dense, dense) == 0
    for field in ("density", "parameters", "bytes", "macs"):
        assert parse_rule(f"{field} <= 1").value_of(dense, dense) == 1


def test_higher_accuracy_is_a_negative_drop() -> None:
    dense = make_dense("classification", "sst2")
    better = replace(dense, validation={"accuracy": dense.quality + 0.01})
    assert parse_rule("quality_drop <= 0").value_of(better, dense) < 0


@pytest.mark.parametrize("op", OPERATORS)
def test_nan_never_passes(op: str) -> None:
    rule = Rule(field="speedup", op=op, value=1.2)
    assert not rule.check(math.nan)
    assert rule.shortfall(math.nan) == math.inf


@settings(deadline=None)
@given(rules(), numbers)
def test_check_is_the_comparison_and_shortfall_is_the_distance(rule: Rule, value: float) -> None:
    assert rule.check(value) == eval(f"{value!r} {rule.op} {rule.value!r}")
    assert rule.shortfall(value) == (0 if rule.check(value) else abs(value - rule.value))


def test_values_in_the_unit_of_their_field() -> None:
    assert parse_rule("quality_drop <= 2%").in_words(0.0163) == "1.6%"
    assert parse_rule("speedup >= 1.2").in_words(1.432) == "1.43x"
    assert parse_rule("latency_ms <= 20").in_words(12.34) == "12.3 ms"
    assert parse_rule("speedup >= 1.2").in_words(math.nan) == "n/a"
    assert parse_rule("latency_p50_ms <= 20").in_words(12.34) == "12.3 ms"
    assert parse_rule("bytes <= 50 MB").in_words(12_345_678) == "12.3 MB"
    assert parse_rule("parameters <= 5 M").in_words(835_123) == "835 k"

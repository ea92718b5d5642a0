"""Records survive JSON whole, and files are never half written."""

from __future__ import annotations

import json
import math
import string
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.campaign_records import CampaignResult, Choice, FailedTrial, Promotion, TaskResult
from orchestrator.front.figures import (
    AcrossTasks,
    Interval,
    NoisyFront,
    SettingFigures,
    VolumePoint,
)
from orchestrator.records import CurvePoint, Densities, Metric, ModelRecord, Size, Speed
from tests.orchestrator.record_factory import (
    BITS,
    dense_size,
    make_campaign,
    make_dense,
    make_speed,
    make_task_result,
    make_trial,
)

TEXT = st.text(string.ascii_letters + 'é→\n"\\', max_size=8)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(1e-9, 1e12)
COUNT = st.integers(0, 2**40)
JSON = st.recursive(
    st.none() | st.booleans() | COUNT | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIGURES = st.dictionaries(TEXT, NUMBER, max_size=3)

METRICS = st.builds(Metric, name=TEXT, higher_is_better=st.booleans())
SIZES = st.builds(
    Size, num_parameters=COUNT, num_prunable=COUNT, num_bytes=COUNT, macs_per_token=NUMBER
)
DENSITIES = st.builds(Densities, prunable=NUMBER, parameters=NUMBER, bytes=NUMBER, macs=NUMBER)
OPTIONAL = st.none() | NUMBER
POINTS = st.builds(
    CurvePoint,
    step=COUNT,
    phase=TEXT,
    seconds=NUMBER,
    extras=FIGURES,
    **{
        field.name: OPTIONAL
        for field in fields(CurvePoint)
        if field.name not in ("step", "phase", "seconds", "extras")
    },
)
SPEEDS = st.builds(
    Speed,
    batch=COUNT,
    length=COUNT,
    repeats=COUNT,
    fingerprint=st.dictionaries(TEXT, JSON, max_size=2),
    **{
        field.name: NUMBER
        for field in fields(Speed)
        if field.name not in ("batch", "length", "repeats", "fingerprint")
    },
)
RECORDS = st.builds(
    ModelRecord,
    key=TEXT,
    task=TEXT,
    metric=METRICS,
    validation=FIGURES,
    test=FIGURES,
    size=SIZES,
    seed=COUNT,
    workers=COUNT,
    train_seconds=NUMBER,
    curve=st.lists(POINTS, max_size=3),
    export=TEXT,
    export_sha256=TEXT,
    config=st.dictionaries(TEXT, JSON, max_size=3),
    densities=st.none() | DENSITIES,
    ranks=st.dictionaries(TEXT, st.dictionaries(TEXT, COUNT, max_size=2), max_size=2),
    projection=FIGURES,
    speed=st.lists(SPEEDS, max_size=2),
    mlflow_run_id=st.none() | TEXT,
    model_uri=st.none() | TEXT,
    method_name=TEXT,
    finished=OPTIONAL,
).map(
    lambda record: replace(record, validation=record.validation | {record.metric.name: 0.5}),
)
INTERVALS = st.builds(Interval, value=NUMBER, low=OPTIONAL, high=OPTIONAL)
FRONTS = st.builds(
    NoisyFront,
    objectives=st.lists(TEXT, max_size=3),
    batch=st.none() | COUNT,
    level=NUMBER,
    draws=COUNT,
    seed=COUNT,
    seed_noise=OPTIONAL,
    degrees_of_freedom=COUNT,
    settings=st.lists(
        st.builds(
            SettingFigures,
            keys=st.lists(TEXT, max_size=2),
            quality=INTERVALS,
            test=st.none() | INTERVALS,
            parameters=INTERVALS,
            speedup=st.none() | INTERVALS,
            probability=NUMBER,
        ),
        max_size=2,
    ),
    reference=FIGURES,
    volumes=st.lists(
        st.builds(VolumePoint, train_seconds=NUMBER, num_settings=COUNT, volume=INTERVALS),
        max_size=2,
    ),
)
ACROSS = st.builds(
    AcrossTasks,
    name=TEXT,
    density=NUMBER,
    drops=FIGURES,
    worst_regret=NUMBER,
    worst_task=TEXT,
    average_rank=NUMBER,
)
RESULTS = st.builds(
    CampaignResult,
    across=st.lists(ACROSS, max_size=2),
    name=TEXT,
    spec_hash=TEXT,
    started=TEXT,
    seconds=NUMBER,
    hardware=st.dictionaries(TEXT, JSON, max_size=2),
    tasks=st.lists(
        st.builds(
            TaskResult,
            task=TEXT,
            kind=TEXT,
            dense=RECORDS,
            trials=st.lists(RECORDS, max_size=2),
            failed=st.lists(
                st.builds(
                    FailedTrial,
                    key=TEXT,
                    task=TEXT,
                    config=st.dictionaries(TEXT, JSON, max_size=2),
                    reason=TEXT,
                    method_name=TEXT,
                    seed=st.none() | COUNT,
                ),
                max_size=2,
            ),
            choice=st.builds(
                Choice,
                key=st.none() | TEXT,
                sentence=TEXT,
                front=st.lists(TEXT, max_size=2),
                passed=st.lists(TEXT, max_size=2),
            ),
            promotion=st.none()
            | st.builds(
                Promotion,
                model=TEXT,
                version=st.none() | TEXT,
                promoted=st.booleans(),
                sentence=TEXT,
                checks=st.lists(st.dictionaries(TEXT, JSON, max_size=2), max_size=2),
                reproduced=FIGURES,
            ),
            data=st.dictionaries(TEXT, JSON, max_size=2),
            noisy_front=st.none() | FRONTS,
        ),
        max_size=1,
    ),
)


@given(RECORDS)
@settings(deadline=None, max_examples=60)
def test_a_record_survives_json(record: ModelRecord):
    assert ModelRecord.from_json(record.to_json()) == record


@given(result=RESULTS)
@settings(deadline=None, max_examples=40)
def test_a_result_survives_its_file(tmp_path_factory: pytest.TempPathFactory, result: Any):
    path = tmp_path_factory.getbasetemp() / "result.json"
    result.save(path)
    assert CampaignResult.load(path) == result


def test_a_whole_campaign_survives_its_file(tmp_path: Path):
    trial = make_trial(0.3)
    choice = Choice(key=trial.key, sentence="s", front=[trial.key], passed=[])
    campaign = make_campaign([make_task_result([trial], make_dense(), choice)])
    campaign.save(tmp_path / "result.json")
    assert CampaignResult.load(tmp_path / "result.json") == campaign
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_cannot_hold_leaves_the_former_file(tmp_path: Path, value: float):
    path = tmp_path / "folder" / "record.json"
    record = make_trial()
    record.save(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(record, train_seconds=value).save(path)
    assert ModelRecord.load(path) == record


@given(dense=POSITIVE, compressed=POSITIVE)
def test_a_drop_is_relative_and_positive_when_it_is_worse(dense: float, compressed: float):
    loss = Metric(name="loss", higher_is_better=False)
    score = Metric(name="score", higher_is_better=True)
    assert loss.drop(dense, compressed) == pytest.approx((compressed - dense) / dense)
    assert score.drop(dense, compressed) == pytest.approx((dense - compressed) / dense)


@pytest.mark.parametrize(
    ("dense", "compressed"), [(0, 1), (math.nan, 1), (1, math.nan), (math.inf, 1), (1, math.inf)]
)
def test_a_drop_without_a_base_is_nan(dense: float, compressed: float):
    assert math.isnan(BITS.drop(dense, compressed))


def test_a_drop_from_a_negative_score_keeps_its_sense():
    """Matthews correlation may be below zero."""
    matthews = Metric(name="matthews", higher_is_better=True)
    assert matthews.drop(-0.2, -0.1) < 0 < matthews.drop(-0.1, -0.2)


def test_densities_are_kept_fractions():
    size = dense_size("classification")
    half = Size(
        num_parameters=size.num_parameters // 2,
        num_prunable=size.num_prunable // 4,
        num_bytes=size.num_bytes,
        macs_per_token=size.macs_per_token / 8,
    )
    found = Densities.of(half, size)
    assert (found.prunable, found.bytes, found.macs) == (0.25, 1.0, 0.125)
    assert found.parameters == pytest.approx(0.5)


def test_records_of_earlier_versions_are_read():
    """A dense reference may have taken hours."""
    raw = json.loads(make_dense().to_json())
    del raw["method_name"]
    for point in raw["curve"]:
        del point["extras"]
    assert ModelRecord.from_dict(raw) == make_dense()


def test_results_of_earlier_versions_are_read(tmp_path: Path):
    trial, path = make_trial(0.3), tmp_path / "result.json"
    choice = Choice(key=trial.key, sentence="s", front=[trial.key], passed=[])
    campaign = make_campaign([make_task_result([trial], make_dense(), choice)])
    campaign.save(path)
    raw = json.loads(path.read_text())
    del raw["across"], raw["tasks"][0]["noisy_front"], raw["tasks"][0]["trials"][0]["finished"]
    path.write_text(json.dumps(raw))
    assert CampaignResult.load(path) == campaign


def test_speed_of_a_batch_or_of_the_largest():
    record = make_trial(speed=[make_speed(32, 1.5, 80.0), make_speed(1, 1.1, 6.0)])
    assert (record.speedup(), record.speedup(1), record.speedup(32)) == (1.5, 1.1, 1.5)
    assert record.latency_ms(1) == pytest.approx(6.0 / 1.1)
    assert math.isnan(record.speedup(2))
    assert math.isnan(make_trial(speed=[]).latency_ms())

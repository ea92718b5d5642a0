"""Speed of exports: what is timed and how it is written down. How fast is nobody's test."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from lowrank.hf import load_pretrained
from lowrank.int8 import num_int8_bytes, quantize_int8
from lowrank.timing import Pair
from orchestrator.measure import measure_int8, measure_speed, to_speed
from orchestrator.records import Speed
from orchestrator.spec_after import MeasureSpec
from orchestrator.tasks import make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import LENGTH, Family

FINGERPRINT = {"device", "cpu", "cores", "threads", "dtype", "torch", "python", "system"}


@pytest.fixture(scope="module")
def rows(lm: Family) -> list[Speed]:
    measure = MeasureSpec(batch=[3, 1, 3], length=LENGTH * 10, repeats=7, threads=1)
    return measure_speed(
        lm.dense.export, lm.trials[1].export, lm.task, str(lm.data.folder), measure
    )


def test_one_row_per_batch_at_most_as_long_as_the_task(rows: list[Speed]):
    assert [(row.batch, row.length) for row in rows] == [(1, LENGTH), (3, LENGTH)]


def test_quartiles_are_ordered(rows: list[Speed]):
    for row in rows:
        assert 0 < row.speedup_low <= row.speedup <= row.speedup_high
        assert min(row.dense_ms, row.compressed_ms) > 0
        assert min(row.dense_spread_ms, row.compressed_spread_ms) >= 0
        assert row.repeats == 7


def test_throughput_is_tokens_per_second(rows: list[Speed]):
    for row in rows:
        tokens = row.batch * row.length
        assert row.throughput_dense == pytest.approx(tokens / row.dense_ms * 1e3)
        assert row.throughput_compressed == pytest.approx(tokens / row.compressed_ms * 1e3)


def test_the_fingerprint_says_where_it_was_measured(rows: list[Speed]):
    for row in rows:
        assert set(row.fingerprint) == FINGERPRINT
        assert (row.fingerprint["threads"], row.fingerprint["dtype"]) == (1, "float32")
        json.dumps(asdict(row), allow_nan=False)


def test_threads_are_those_asked_for_and_then_put_back(classes: Family):
    before = torch.get_num_threads()
    measure = MeasureSpec(batch=[1], length=4, repeats=7, threads=2)
    rows = measure_speed(
        classes.dense.export,
        classes.trials[0].export,
        classes.task,
        str(classes.data.folder),
        measure,
    )
    assert rows[0].fingerprint["threads"] == 2
    assert rows[0].length == 4
    assert torch.get_num_threads() == before


def test_medians_and_quartiles_of_known_times():
    """Ratios 1, 2, 3, 4, 5: median 3, quartiles 2 and 4."""
    pair = Pair(first_s=[0.1, 0.4, 0.3, 0.8, 0.5], second_s=[0.1, 0.2, 0.1, 0.2, 0.1])
    speed = to_speed(pair, batch=2, length=10, print_={})
    assert (speed.speedup_low, speed.speedup, speed.speedup_high) == pytest.approx((2, 3, 4))
    assert speed.dense_ms == pytest.approx(median([100, 400, 300, 800, 500]))
    assert speed.dense_spread_ms == pytest.approx(200)  # of 100 300 400 500 800: 300 to 500
    assert speed.compressed_spread_ms == pytest.approx(100)
    assert speed.throughput_compressed == pytest.approx(20 / 0.1)


class TestInt8:
    MEASURE = MeasureSpec(batch=[3, 1], length=8, repeats=7, threads=1, int8=True)

    def found(self, family: Family, folder: str) -> Any:
        return measure_int8(
            family.dense.export, folder, family.task, str(family.data.folder), self.MEASURE
        )

    @pytest.mark.parametrize("kind", ["classes", "scores"])
    def test_dense_and_compressed(self, kind: str, request: pytest.FixtureRequest):
        family: Family = request.getfixturevalue(kind)
        task = make_task(family.task, family.data, seed=0)
        for record in (family.dense, family.trials[1]):
            found = self.found(family, record.export)
            quantized = quantize_int8(load_pretrained(record.export))
            assert found.test == evaluate(quantized, task, LocalWorkers(), "test")
            assert found.test.keys() == record.test.keys()
            assert found.num_bytes == num_int8_bytes(quantized) < record.size.num_bytes
            assert [row.batch for row in found.speed] == [1, 3]
            assert {row.fingerprint["dtype"] for row in found.speed} == {"qint8"}
            assert {row.fingerprint["device"] for row in found.speed} == {"cpu"}

    def test_a_model_that_cannot_be_quantized_says_why(self, lm: Family, tmp_path: Path):
        """Of this one nothing but Conv1D layers and a tied output projection."""
        model = load_pretrained(lm.dense.export)
        del model.lm_head
        assert not any(type(m) is nn.Linear for m in model.modules())
        with mock.patch("orchestrator.measure.load_pretrained", return_value=model):
            assert self.found(lm, lm.dense.export) == "the model has no nn.Linear to quantize"

    def test_on_a_gpu_it_is_left_out(self, classes: Family):
        with mock.patch("torch.cuda.is_available", return_value=True):
            assert "GPU" in self.found(classes, classes.dense.export)

from __future__ import annotations

import copy

import pytest

from lowrank import HeadsFfn, NeuronL0, Pruner, timing
from lowrank.benchmark.layers import measure_layers, with_rest
from lowrank.benchmark.phases import Work
from lowrank.benchmark.subjects import HEADS, Subject
from tests.lowrank.benchmark import tiny_decoder, tiny_encoder


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SAMPLE_S", 0.0)


def test_every_distinct_layer_is_timed_once_and_counted():
    found = measure_layers(tiny_encoder(), Work("forward", 2, 8), repeats=7)
    sizes = [(k["out_features"], k["in_features"], k["rank"], k["count"], k["rows"]) for k in found]
    assert sizes == [(16, 16, 4, 8, 16), (32, 16, 5, 2, 16), (16, 32, 5, 2, 16)]
    for kind in found:
        assert kind["dense_ms"] > 0 < kind["compressed_ms"]
        assert kind["speedup"]["low"] <= kind["speedup"]["high"]
    assert [kind["promised"] for kind in found] == pytest.approx([2, 32 / 15, 32 / 15])
    assert found[0]["example"] == "bert.encoder.layer.0.attention.self.query"


def test_a_decoded_token_is_one_row_each_and_conv1d_is_a_matrix_too():
    found = measure_layers(tiny_decoder(), Work("decode", 3, 5, 2), repeats=7)
    assert {kind["rows"] for kind in found} == {3}
    assert [kind["count"] for kind in found] == [2, 2, 2, 2]
    assert (found[0]["out_features"], found[0]["in_features"]) == (48, 16)


@pytest.mark.parametrize("method", [NeuronL0(density=0.5), HeadsFfn(density=0.5)])
def test_layers_of_other_methods_are_timed_too(method):
    dense = tiny_encoder().dense
    small = Pruner(copy.deepcopy(dense), method, exclude=HEADS).finish().eval()
    subject = Subject(name="other", kind="encoder", dense=dense, compressed=small)
    found = measure_layers(subject, Work("forward", 2, 8), repeats=7)
    assert sum(kind["count"] for kind in found) == len(subject.layers) > 0
    for kind in found:
        assert kind["form"] in ("sliced", "narrow")
        assert kind["rank"] is None
        assert kind["promised"] >= 1


def test_a_model_without_small_layers_has_none():
    dense = tiny_encoder().dense
    subject = Subject(name="same", kind="encoder", dense=dense, compressed=dense)
    assert measure_layers(subject, Work("forward", 1, 4), repeats=7) == []


def test_what_is_left_is_the_pass_without_its_layers():
    cell = {
        "new_tokens": 4,
        "rows": [
            {"side": "dense", "form": "eager", "median_ms": 40.0},
            {"side": "dense", "form": "int8", "median_ms": 1.0},
            {"side": "compressed", "form": "eager", "median_ms": 20.0},
        ],
    }
    layers = [
        {"dense_ms": 1.0, "compressed_ms": 0.5, "count": 4},
        {"dense_ms": 2.0, "compressed_ms": 0.25, "count": 2},
    ]
    found = with_rest(cell, layers)
    assert found["dense"] == {
        "pass_ms": 10.0, "layers_ms": 8.0, "outside_ms": 2.0, "outside_share": pytest.approx(0.2),
    }  # fmt: skip
    assert found["compressed"] == {
        "pass_ms": 5.0, "layers_ms": 2.5, "outside_ms": 2.5, "outside_share": pytest.approx(0.5),
    }  # fmt: skip

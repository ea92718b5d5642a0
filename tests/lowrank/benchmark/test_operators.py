from __future__ import annotations

import pytest

from lowrank.benchmark.operators import MOST, PASSES, group_of, measure_operators, summarize
from lowrank.benchmark.phases import Work
from tests.lowrank.benchmark import tiny_decoder, tiny_encoder


@pytest.mark.parametrize(
    ("model", "work"),
    [
        (tiny_encoder().dense, Work("forward", 2, 8)),
        (tiny_encoder().compressed, Work("forward", 2, 8)),
        (tiny_decoder().compressed, Work("decode", 2, 5, 3)),
    ],
)
def test_shares_add_up_and_products_are_found(model, work):
    found = measure_operators(model, work)
    assert sum(found["groups"].values()) == pytest.approx(1)
    assert found["groups"]["matrix"] > 0
    assert found["groups"]["attention"] > 0
    shares = [op["share"] for op in found["operators"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == MOST


def test_factors_are_two_products_where_a_matrix_is_one():
    work = Work("forward", 2, 8)

    def products(model):
        listed = measure_operators(model, work)["operators"]
        return sum(op["calls"] for op in listed if op["name"] in ("aten::addmm", "aten::mm"))

    subject = tiny_encoder()
    # twelve layers, pooler and classifier
    assert products(subject.dense) == 14
    assert products(subject.compressed) == 14 + 12


def test_a_summary_of_known_times():
    events = [
        ("aten::addmm", 60.0, 2 * PASSES),
        ("aten::gelu", 30.0, PASSES),
        ("aten::bmm", 10.0, 3),
    ]
    found = summarize(events)
    assert found["groups"] == pytest.approx({"matrix": 0.6, "attention": 0.1, "other": 0.3})
    assert found["operators"][0] == {"name": "aten::addmm", "share": 0.6, "calls": 2.0}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", "matrix"),
        ("aten::mm", "matrix"),
        ("aten::bmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::native_layer_norm", "other"),
        ("aten::mul", "other"),
    ],
)
def test_operators_belong_to_groups(name, group):
    assert group_of(name) == group

from __future__ import annotations

import pytest
import torch

from lowrank import LowRankError, timing
from lowrank.benchmark import cells, forms
from lowrank.benchmark.cells import measure_cell
from lowrank.benchmark.forms import COMPILED, FORMS, Form, Unavailable
from lowrank.benchmark.phases import Work
from lowrank.counting import macs_per_token
from lowrank.density import LayerShape
from tests.lowrank import token_ids
from tests.lowrank.benchmark import tiny_decoder, tiny_encoder

FORWARD, DECODE = Work("forward", 2, 8), Work("decode", 2, 5, 4)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """One call per sample: no time is looked at here."""
    monkeypatch.setattr(timing, "MIN_SAMPLE_S", 0.0)


def rows_of(cell):
    return {(row["side"], row["form"]): row for row in cell["rows"]}


def test_every_form_of_both_models_has_a_row():
    cell = measure_cell(tiny_encoder(), FORWARD, ["folded", "int8"], repeats=7)
    rows = rows_of(cell)
    assert [*rows] == [
        ("dense", "eager"),
        ("dense", "int8"),
        ("compressed", "eager"),
        ("compressed", "folded"),
        ("compressed", "int8"),
    ]
    for row in rows.values():
        assert len(row["samples_ms"]) == 7
        assert row["speedup"]["low"] <= row["speedup"]["median"] <= row["speedup"]["high"]
        assert row["tokens_per_s"] == pytest.approx(16 / row["median_ms"] * 1e3)
    reference = rows["dense", "eager"]
    assert reference["speedup"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    small = rows["compressed", "eager"]
    ratios = [a / b for a, b in zip(reference["samples_ms"], small["samples_ms"], strict=True)]
    assert small["speedup"]["median"] == pytest.approx(sorted(ratios)[3])
    assert small["attained"] == pytest.approx(small["speedup"]["median"] / cell["promised"])


def test_forms_are_of_the_same_model():
    rows = rows_of(measure_cell(tiny_encoder(), FORWARD, ["folded", "int8"], repeats=7))
    assert rows["dense", "eager"]["deviation"] == rows["compressed", "eager"]["deviation"] == 0
    assert rows["compressed", "folded"]["deviation"] < 1e-5
    assert 0 < rows["compressed", "int8"]["deviation"] < 0.2


def test_what_is_promised_is_the_ratio_of_multiply_accumulates():
    subject = tiny_encoder()
    cell = measure_cell(subject, FORWARD, ["int8", "folded"], repeats=7)
    inputs = {"input_ids": token_ids(2, 8)}
    for side in ("dense", "compressed"):
        wanted = macs_per_token(getattr(subject, side), inputs, 16)
        assert cell["macs_per_token"][side] == pytest.approx(wanted)
    macs = cell["macs_per_token"]
    saved = 2 * (4 * (256 - 4 * 32) + 2 * (512 - 5 * 48))
    assert macs["dense"] - macs["compressed"] == saved
    assert cell["promised"] == pytest.approx(macs["dense"] / macs["compressed"])
    rows = rows_of(cell)
    assert rows["compressed", "eager"]["promised"] == cell["promised"]
    # products of another kind: their number says nothing
    assert rows["compressed", "folded"]["promised"] is rows["dense", "int8"]["promised"] is None


def test_generated_tokens_are_counted_and_their_arithmetic_is_that_of_single_positions():
    subject = tiny_decoder()
    cell = measure_cell(subject, DECODE, ["folded"], repeats=7)
    rows = rows_of(cell)
    assert {row["num_tokens"] for row in rows.values()} == {2 * 4}
    assert rows["compressed", "folded"]["deviation"] == 0  # the same tokens
    blocks = [(16, 48), (16, 16), (16, 64), (64, 16)]
    head = 16 * 40
    matrices = 2 * sum(a * b for a, b in blocks)
    # positions 5 to 8 look at 6 to 9 keys; query times key and weight times value
    attention = 2 * 2 * 16 * (6 + 7 + 8 + 9) / 4
    assert cell["macs_per_token"]["dense"] == pytest.approx(matrices + head + attention)
    factors = 2 * sum((a + b) * int(0.5 * LayerShape(a, b).num_dense / (a + b)) for a, b in blocks)
    assert cell["macs_per_token"]["compressed"] == pytest.approx(factors + head + attention)


def test_a_form_that_cannot_be_built_is_a_row_with_its_reason(monkeypatch):
    def refuse(model, inputs):
        raise Unavailable("no runtime here")

    monkeypatch.setitem(forms.FORMS, "folded", Form(refuse, dense=False))
    row = rows_of(measure_cell(tiny_encoder(), FORWARD, ["folded"], repeats=7))[
        "compressed", "folded"
    ]
    assert row["reason"] == "no runtime here"
    assert row["samples_ms"] == []
    assert row["median_ms"] is row["speedup"] is row["deviation"] is row["tokens_per_s"] is None


def test_a_form_without_a_cache_does_not_decode(monkeypatch):
    monkeypatch.setitem(forms.FORMS, "folded", Form(forms.folded, dense=False, decodes=False))
    rows = rows_of(measure_cell(tiny_decoder(), DECODE, ["folded"], repeats=7))
    assert "cache" in rows["compressed", "folded"]["reason"]


def test_a_form_of_ones_own_is_timed_like_the_others(monkeypatch):
    monkeypatch.setitem(FORMS, "traced", Form(lambda model, inputs: model, decodes=False))
    rows = rows_of(measure_cell(tiny_encoder(), FORWARD, ["traced"], repeats=7))
    assert rows["dense", "traced"]["samples_ms"]
    assert rows["compressed", "traced"]["deviation"] == 0


def test_the_best_of_eager_and_compiled_stands_for_each_side():
    times = {("dense", "eager"): 4.0, ("dense", "compiled"): 3.5, ("dense", "frozen"): 3.0}
    times |= {("compressed", "eager"): 1.0, ("compressed", "compiled"): 2.0}
    times |= {("dense", "onnx"): 0.1, ("compressed", "int8"): 0.1}
    samples = {key: [value] * 7 for key, value in times.items()}
    best = cells._best(samples, promised=4.0, seed=0)
    assert (best["dense"], best["compressed"]) == ("frozen", "eager")
    assert best["speedup"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert best["attained"] == 0.75
    assert best["is_faster"]


def test_few_repeats_are_refused_before_anything_runs():
    with pytest.raises(LowRankError, match="repeats >= 7 must hold, got 6"):
        measure_cell(tiny_encoder(), FORWARD, [], repeats=6)


@pytest.mark.slow
@pytest.mark.parametrize("work", [FORWARD, DECODE])
def test_compiled_forms_compute_the_same(work):
    subject = tiny_encoder() if work is FORWARD else tiny_decoder()
    rows = rows_of(measure_cell(subject, work, COMPILED, repeats=7))
    for row in (rows[side, form] for side in ("dense", "compressed") for form in COMPILED):
        assert row["reason"] == ""
        assert len(row["samples_ms"]) == 7
        assert row["deviation"] < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("work", [FORWARD, DECODE])
def test_cells_on_a_gpu(work):
    subject = tiny_encoder() if work is FORWARD else tiny_decoder()
    for side in ("dense", "compressed"):
        getattr(subject, side).to(torch.device("cuda"), torch.bfloat16)
    rows = rows_of(measure_cell(subject, work, ["folded", "int8"], repeats=7))
    assert len(rows["compressed", "eager"]["samples_ms"]) == 7
    assert rows["dense", "int8"]["reason"]

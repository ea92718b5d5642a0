from __future__ import annotations

import pytest
import torch

from lowrank.benchmark.forms import FORMS, Unavailable, check_forms
from lowrank.errors import LowRankError
from lowrank.linear import LowRankLinear
from tests.lowrank import relative_error, token_ids
from tests.lowrank.benchmark import tiny_decoder, tiny_encoder


@pytest.mark.parametrize("make", [tiny_encoder, tiny_decoder])
@pytest.mark.parametrize(
    ("form", "tolerance"), [("eager", 0.0), ("folded", 1e-5), ("pivoted", 1e-5), ("int8", 0.2)]
)
def test_a_form_computes_what_the_model_does(make, form, tolerance):
    model = make().compressed
    inputs = {"input_ids": token_ids()}
    with torch.inference_mode():
        wanted = model(**inputs).logits
        found = FORMS[form].build(model, inputs)(**inputs).logits
    assert relative_error(found, wanted) <= tolerance
    assert any(type(m) is LowRankLinear for m in model.modules()), "the model was changed"


def test_a_folded_model_has_the_dense_matrices_and_the_same_ties():
    subject = tiny_decoder()
    folded = FORMS["folded"].build(subject.compressed, {})
    assert not any(isinstance(m, LowRankLinear) for m in folded.modules())
    assert folded.lm_head.weight is folded.transformer.wte.weight
    count = sum(p.numel() for p in folded.parameters())
    assert count == sum(p.numel() for p in subject.dense.parameters())


@pytest.mark.slow
def test_onnx_runtime_computes_what_the_model_does():
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    for make in (tiny_encoder, tiny_decoder):
        model = make().compressed
        inputs = {"input_ids": token_ids()}
        run = FORMS["onnx"].build(model, inputs)
        with torch.inference_mode():
            wanted = model(**inputs).logits
        assert relative_error(run(**inputs).logits, wanted) < 1e-4
        if make is tiny_decoder:
            last = run(**inputs, use_cache=True, logits_to_keep=1).logits
            assert relative_error(last, wanted[:, -1:]) < 1e-4


def test_onnx_of_half_precision_says_why():
    model = tiny_encoder().compressed.to(torch.bfloat16)
    with pytest.raises(Unavailable, match="float32"):
        FORMS["onnx"].build(model, {"input_ids": token_ids()})


def test_what_cannot_be_quantized_says_why():
    model = tiny_encoder().dense.to(torch.bfloat16)
    with pytest.raises(Unavailable, match="float32"):
        FORMS["int8"].build(model, {})


def test_forms_come_in_the_tables_order_with_eager_mode():
    assert check_forms(["int8", "folded"]) == ["eager", "folded", "int8"]
    assert check_forms([]) == ["eager"]
    with pytest.raises(LowRankError, match="'gguf'"):
        check_forms(["gguf"])

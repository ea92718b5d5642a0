from __future__ import annotations

import pytest
import torch

from lowrank.benchmark.phases import (
    Greedy,
    NoCache,
    Work,
    call_of,
    check_fits,
    grid,
    make_inputs,
)
from lowrank.errors import LowRankError
from tests.lowrank import tiny_bert, tiny_gpt2, token_ids
from tests.lowrank.benchmark import tiny_decoder


def generated(model, prompt, new_tokens):
    """transformers' own loop; its first token is the prompt's."""
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=new_tokens + 1,
        min_new_tokens=new_tokens + 1,
        pad_token_id=0,
        eos_token_id=None,
    )
    return found[:, prompt.shape[1] :]


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("side", ["dense", "compressed"])
def test_greedy_decoding_is_what_generate_does_and_can_be_repeated(side, static_cache):
    model, prompt = getattr(tiny_decoder(), side), token_ids(batch=2, length=5)
    wanted = generated(model, prompt, 6)
    with torch.inference_mode():
        greedy = Greedy(model, model, prompt, 6, static_cache)
        runs = [greedy() for _ in range(3)]
    assert torch.equal(greedy.first, wanted[:, :1])
    assert len(wanted.unique()) > 1, "the model says one thing only"
    for found in runs:
        assert torch.equal(found, wanted[:, 1:])


def test_a_model_without_a_cache_does_not_decode():
    with pytest.raises(NoCache, match="BertForSequenceClassification"):
        Greedy(tiny_bert(), tiny_bert(), token_ids(), 3)


def test_a_prompt_makes_a_cache_and_the_last_logits_only():
    model, work = tiny_gpt2(), Work("prefill", 2, 7)
    inputs = make_inputs(model, work)
    with torch.inference_mode():
        output = call_of(model, model, work, inputs)()
        whole = model(**inputs).logits
    assert output.logits.shape == (2, 1, 40)
    torch.testing.assert_close(output.logits, whole[:, -1:])
    assert output.past_key_values.get_seq_length() == 7


def test_inputs_are_full_rows_and_a_function_of_the_seed():
    model, work = tiny_bert(), Work("forward", 3, 8)
    one, again, other = (make_inputs(model, work, seed) for seed in (1, 1, 2))
    assert torch.equal(one["input_ids"], again["input_ids"])
    assert not torch.equal(one["input_ids"], other["input_ids"])
    assert one["attention_mask"].shape == (3, 8)
    assert one["attention_mask"].all()
    assert 0 <= int(one["input_ids"].min()) <= int(one["input_ids"].max()) < 40


def test_a_decoder_has_two_cells_per_shape():
    shapes = [(1, 32), (16, 128)]
    assert grid("encoder", shapes, 9) == [Work("forward", 1, 32), Work("forward", 16, 128)]
    found = grid("decoder", shapes, 9)
    assert [work.name for work in found] == [
        "prefill 1 x 32",
        "prefill 16 x 128",
        "decode 1 x 32 + 9",
        "decode 16 x 128 + 9",
    ]
    assert [work.num_tokens for work in found] == [32, 2048, 9, 144]


@pytest.mark.parametrize(
    "values",
    [
        ("forward", 0, 8),
        ("forward", 1, 0),
        ("forward", 1, 8, 3),
        ("decode", 1, 8),
        ("decode", 1, 8, -1),
    ],
)
def test_work_without_tokens_is_refused(values):
    with pytest.raises(LowRankError, match="must hold"):
        Work(*values)


def test_more_positions_than_the_model_has_are_refused():
    check_fits(tiny_gpt2(), Work("decode", 1, 8, 8))
    with pytest.raises(LowRankError, match=r"<= 16 must hold for this model: decode 1 x 8 \+ 9"):
        check_fits(tiny_gpt2(), Work("decode", 1, 8, 9))

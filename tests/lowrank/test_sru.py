"""SRU against a loop that follows the paper's equations one number at a time."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank import FlopL0, Pruner
from lowrank.counting import macs_per_token
from lowrank.hf import load_pretrained, save_pretrained
from lowrank.linear import LowRankLinear
from lowrank.models import STATEFUL_TYPES, register
from lowrank.models.sru import Sru, SruLayer, recurrence
from lowrank.surgery import find_layers
from tests.lowrank import scramble_gates, token_ids

TIME, BATCH, WIDTH = 7, 3, 5


def tiny_sru(seed: int = 0, **fields: Any) -> Any:
    """Two layers 16 wide, head tied to the embedding, no dropout."""
    import transformers

    register()
    torch.manual_seed(seed)
    fields = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "dropout": 0.0} | fields
    config = transformers.AutoConfig.for_model("sru", **fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # norms and biases that do something
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def arguments(seed: int = 0) -> list[Tensor]:
    """Of `recurrence`, in float64, with gates from shut to open."""
    torch.manual_seed(seed)
    shapes = [(TIME, BATCH, WIDTH), (TIME, BATCH, WIDTH), (WIDTH,), (BATCH, WIDTH)]
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    values[1] *= 4
    return [value.requires_grad_() for value in values]


def naive_recurrence(candidate: Tensor, forget: Tensor, peephole: Tensor, state: Tensor) -> Tensor:
    cells = []
    for candidate_t, forget_t in zip(candidate, forget, strict=True):
        gate = torch.sigmoid(forget_t + peephole * state)
        state = gate * state + (1 - gate) * candidate_t
        cells.append(state)
    return torch.stack(cells)


def naive_layer(layer: SruLayer, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 1 to 4 with the scaled highway, a step at a time."""
    outputs = []
    candidate_w, forget_w, reset_w = layer.linear.weight.chunk(3)
    for x_t in x:
        read = layer.norm(x_t)
        forget = torch.sigmoid(
            read @ forget_w.T + layer.forget_peephole * state + layer.forget_bias
        )
        reset = torch.sigmoid(read @ reset_w.T + layer.reset_peephole * state + layer.reset_bias)
        state = forget * state + (1 - forget) * (read @ candidate_w.T)
        outputs.append(reset * state + (1 - reset) * x_t * layer.alpha)
    return torch.stack(outputs), state


def test_the_recurrence_and_its_gradients_are_those_of_a_loop():
    mine, naive = arguments(), arguments()
    weight = torch.randn(TIME, BATCH, WIDTH, dtype=torch.float64)
    got, wanted = recurrence(*mine), naive_recurrence(*naive)
    torch.testing.assert_close(got, wanted)
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    for one, other in zip(mine, naive, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradcheck():
    assert torch.autograd.gradcheck(recurrence, arguments(seed=1))


def test_one_step_has_gradients_too():
    candidate, forget, peephole, state = arguments()
    assert torch.autograd.gradcheck(recurrence, (candidate[:1], forget[:1], peephole, state))


def test_shut_and_open_gates_are_exact():
    """f = 0 and f = 1 to the last bit: where a scan that divides by products of f would fail."""
    candidate, forget, peephole, state = arguments()
    shut = recurrence(candidate, torch.full_like(forget, -math.inf), peephole, state)
    assert torch.equal(shut, candidate)
    shut.sum().backward()
    assert torch.equal(candidate.grad, torch.ones_like(candidate))
    assert not any(value.grad.any() for value in (peephole, state))
    kept = recurrence(candidate, torch.full_like(forget, math.inf), peephole, state)
    assert torch.equal(kept, state.expand_as(kept))


@pytest.mark.parametrize("layer_norm", [True, False])
@torch.no_grad()
def test_a_layer_is_the_equations(layer_norm: bool):
    torch.manual_seed(0)
    layer = SruLayer(WIDTH, layer_norm=layer_norm, highway_bias=-1.0).double()
    x, state = torch.randn(TIME, BATCH, WIDTH).double(), torch.randn(BATCH, WIDTH).double()
    wanted = naive_layer(layer, x, state)
    for got, want in zip(layer(x, state), wanted, strict=True):
        torch.testing.assert_close(got, want)
    assert layer.alpha == pytest.approx(math.sqrt(1 + 2 * math.exp(-1)))


@torch.no_grad()
def test_many_layers_keep_the_variance():
    torch.manual_seed(0)
    stack = Sru(256, num_layers=8, layer_norm=False, highway_bias=-2.0)
    outputs, state = stack(torch.randn(20, 8, 256))
    assert all(0.5 < float(h.std()) < 1.5 for h in outputs)
    assert state.shape == (8, 8, 256)


@torch.no_grad()
def test_a_text_in_pieces_is_the_whole_text():
    model, ids = tiny_sru(), token_ids(length=9)
    whole = model(input_ids=ids)
    state, logits = None, []
    for piece in ids.split([4, 1, 4], dim=1):
        out = model(input_ids=piece, state=state)
        state = out.state
        logits.append(out.logits)
    assert state.shape == (2, 3, 16)
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits)
    torch.testing.assert_close(state, whole.state)
    assert not torch.allclose(logits[-1], model(input_ids=ids[:, 5:]).logits, atol=1e-3)


def test_gradients_cross_the_border_of_pieces_until_they_are_detached():
    model, ids = tiny_sru(), token_ids(length=8)
    weight = model.sru.layers[0].linear.weight

    def gradient(detach: bool) -> Tensor:
        model.zero_grad()
        state = model(input_ids=ids[:, :4]).state
        state = state.detach() if detach else state
        model(input_ids=ids[:, 4:], state=state).logits[..., 0].sum().backward()
        return weight.grad.clone()

    model.zero_grad()
    model(input_ids=ids).logits[:, 4:, 0].sum().backward()
    whole = weight.grad.clone()
    torch.testing.assert_close(gradient(detach=False), whole)
    assert not torch.allclose(gradient(detach=True), whole, rtol=1e-2)


@torch.no_grad()
def test_rows_of_a_batch_know_nothing_of_each_other():
    model, ids = tiny_sru(), token_ids(batch=4)
    together = model(input_ids=ids)
    for row in range(4):
        alone = model(input_ids=ids[row : row + 1])
        torch.testing.assert_close(alone.logits, together.logits[row : row + 1])
        torch.testing.assert_close(alone.state, together.state[:, row : row + 1])


@pytest.mark.parametrize("left", [True, False])
def test_padding_leaves_the_state_alone(left: bool):
    model, ids = tiny_sru(), token_ids(batch=1, length=5)
    pads, ones = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 5, dtype=torch.long)
    parts = ([pads, ids], [pads, ones]) if left else ([ids, pads], [ones, pads])
    padded, mask = (torch.cat(part, 1) for part in parts)
    plain, out = model(input_ids=ids), model(input_ids=padded, attention_mask=mask)
    logits = out.logits[:, 3:] if left else out.logits[:, :5]
    torch.testing.assert_close(logits, plain.logits)
    torch.testing.assert_close(out.state, plain.state)
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_loss_of_labels_is_that_of_the_next_token():
    model, ids = tiny_sru(), token_ids()
    out = model(input_ids=ids, labels=ids)
    log_p = out.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])
    torch.testing.assert_close(out.loss, -log_p.mean())
    as_tuple = model(input_ids=ids, use_cache=False, return_dict=False)
    assert len(as_tuple) == 1
    assert torch.equal(model(input_ids=ids, logits_to_keep=1).logits, out.logits[:, -1:])


@torch.no_grad()
def test_hidden_states_are_the_embedding_and_each_layer():
    model, ids = tiny_sru(), token_ids()
    out = model(input_ids=ids, output_hidden_states=True)
    first, between, last = out.hidden_states
    assert torch.equal(first, model.embed_tokens(ids))
    x, _ = model.sru.layers[0](first.transpose(0, 1), torch.zeros(3, 16))
    torch.testing.assert_close(between, x.transpose(0, 1))
    assert torch.equal(model.lm_head(last), out.logits)
    assert model(input_ids=ids).hidden_states is None


def test_dropout_acts_in_training_only():
    model, ids = tiny_sru(dropout=0.5), token_ids()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_under_autocast_the_recurrence_stays_float32():
    model, ids = tiny_sru(), token_ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(input_ids=ids)
        out.logits.float().sum().backward()
    assert (out.logits.dtype, out.state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.state, model(input_ids=ids).state, atol=0.05, rtol=0.05)


class TestGenerate:
    def test_with_and_without_the_state(self):
        model, ids = tiny_sru(tie_word_embeddings=False), token_ids(batch=2, length=4)
        options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
        wanted = ids
        for _ in range(10):
            following = model(input_ids=wanted).logits[:, -1].argmax(-1)
            wanted = torch.cat([wanted, following[:, None]], 1)
        mask = torch.ones_like(ids)
        for use_cache in (True, False):
            got = model.generate(ids, attention_mask=mask, use_cache=use_cache, **options)
            assert got.tolist() == wanted.tolist()
        assert len(set(wanted[:, 4:].flatten().tolist())) > 3, "the test needs a text that varies"

    def test_from_a_state_of_the_text_before(self):
        model, ids = tiny_sru(), token_ids(batch=1, length=8)
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        state = model(input_ids=ids[:, :5]).state
        rest = ids[:, 5:]
        got = model.generate(rest, attention_mask=torch.ones_like(rest), state=state, **options)
        assert got[0, 3:].tolist() == whole[0, 8:].tolist()

    def test_beams_take_their_states_along(self):
        model, ids = tiny_sru(), token_ids(batch=2, length=4)
        options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(ids)
        got, wanted = (
            model.generate(ids, attention_mask=mask, use_cache=use_cache, **options)
            for use_cache in (True, False)
        )
        assert got.tolist() == wanted.tolist()

    def test_prompts_of_different_lengths(self):
        model, ids = tiny_sru(), token_ids(batch=1, length=4)
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        both = torch.cat([torch.cat([torch.zeros(1, 2).long(), ids], 1), token_ids(1, 6, 5)])
        mask = torch.ones_like(both)
        mask[0, :2] = 0
        assert (
            model.generate(both, attention_mask=mask, **options)[0, 2:].tolist()
            == alone[0].tolist()
        )


class TestSaving:
    @pytest.mark.parametrize("tied", [True, False])
    def test_as_transformers_does(self, tied: bool, tmp_path):
        model = tiny_sru(tie_word_embeddings=tied)
        assert (model.lm_head.weight is model.embed_tokens.weight) == tied
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == tied
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name

    @torch.no_grad()
    def test_pruned_and_exported(self, tmp_path):
        model = tiny_sru()
        dense = macs_per_token(model, {"input_ids": token_ids()}, token_ids().numel())
        pruner = Pruner(model, FlopL0(density=0.4))
        assert set(pruner.layers) == {f"sru.layers.{i}.linear" for i in (0, 1)}
        scramble_gates(pruner)
        small = pruner.finish().eval()
        assert all(isinstance(layer.linear, LowRankLinear) for layer in small.sru.layers)
        save_pretrained(small, tmp_path, "AutoModelForCausalLM")
        torch.manual_seed(123)
        loaded = load_pretrained(tmp_path)
        assert type(loaded) is type(small)
        ids = token_ids()
        assert torch.equal(loaded(input_ids=ids).logits, small(input_ids=ids).logits)
        assert loaded.lm_head.weight is loaded.embed_tokens.weight
        assert macs_per_token(loaded, {"input_ids": ids}, ids.numel()) < dense


def test_gates_are_inserted_without_changing_the_function_and_train():
    model, ids = tiny_sru(), token_ids()
    before = model(input_ids=ids).logits.detach()
    pruner = Pruner(model, FlopL0(density=0.4, gated_steps=3))
    torch.testing.assert_close(pruner.model(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
    pruner.model.train()
    (pruner.model(input_ids=ids, labels=ids).loss + pruner.penalty()).backward()
    unreached = [n for n, p in pruner.model.named_parameters() if p.grad is None]
    assert unreached == []


def test_all_matrices_of_the_layers_can_be_selected():
    model = tiny_sru(tie_word_embeddings=False)
    assert list(find_layers(model).layers) == [
        "sru.layers.0.linear",
        "sru.layers.1.linear",
        "lm_head",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be an integer >= 1, got 0"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers must be an integer >= 1, got 'two'"),
        ({"dropout": 1.0}, "0 <= dropout < 1 must hold, got 1.0"),
    ],
)
def test_sizes_that_make_no_model_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tiny_sru(**fields)


def test_the_type_is_known_after_registering_and_needs_no_transformers_before():
    import transformers

    register()
    register()
    assert [transformers.AutoConfig.for_model(t).carries_state for t in STATEFUL_TYPES] == [True]
    assert "carries_state" not in transformers.AutoConfig.for_model("sru").to_dict()
    code = "import sys, lowrank, lowrank.models.sru; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(3, 3, 16), (2, 1, 16), (2, 3, 8)])
def test_a_state_of_another_model_or_batch_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"the state must be \[2, 3, 16\] here, got"):
        tiny_sru()(input_ids=token_ids(), state=torch.zeros(shape))

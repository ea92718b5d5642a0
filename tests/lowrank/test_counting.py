from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank import FlopL0, LowRankLinear, Pruner
from lowrank.counting import macs_per_token, num_matrix_parameters, num_parameters
from tests.lowrank import scramble_gates, tiny_bert, tiny_gpt2, token_ids


class Named(nn.Module):
    """Takes its input by name."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Linear(10, 6), 60),
        (LowRankLinear(10, 6, rank=2), 2 * 16),
        (LowRankLinear(10, 6, rank=3, bias=False), 3 * 16),
        (nn.Sequential(nn.Linear(10, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 5)), 90),
        (nn.Identity(), 0),
    ],
)
@pytest.mark.parametrize("shape", [(7,), (2, 5)])
def test_products_are_counted_per_token(layer, macs, shape):
    x = torch.randn(*shape, 10)
    assert macs_per_token(Named(layer), {"x": x}, x.numel() // 10) == macs


@pytest.mark.parametrize("length", [4, 8])
def test_gpt2_by_hand(length):
    width, vocabulary, layers = 16, 40, 2
    ids = token_ids(batch=3, length=length)
    linears = width * 3 * width + width * width + 2 * width * 4 * width
    attention = 2 * length * width  # scores, then values: each token with every position
    wanted = layers * (linears + attention) + width * vocabulary
    assert macs_per_token(tiny_gpt2(), {"input_ids": ids}, ids.numel()) == wanted


def test_bert_by_hand():
    width, length, labels, layers = 16, 8, 3, 2
    ids = token_ids(batch=3, length=length)
    linears = 4 * width * width + 2 * width * 2 * width
    attention = 2 * length * width
    once_per_text = (width * width + width * labels) / length
    wanted = layers * (linears + attention) + once_per_text
    assert macs_per_token(tiny_bert(), {"input_ids": ids}, ids.numel()) == wanted


def test_a_pruned_model_costs_what_its_matrices_hold():
    model, ids = tiny_gpt2(), token_ids()
    inputs, tokens = {"input_ids": ids}, ids.numel()
    dense_macs = macs_per_token(model, inputs, tokens)
    dense_size = num_parameters(model)
    pruner = Pruner(model, FlopL0(density=0.4))
    scramble_gates(pruner)
    names, total = list(pruner.layers), pruner.num_dense
    small = pruner.finish()
    saved = total - num_matrix_parameters(small, names)
    assert saved >= 0.6 * total
    assert macs_per_token(small, inputs, tokens) == dense_macs - saved
    assert num_parameters(small) == dense_size - saved


@pytest.mark.parametrize("training", [True, False])
def test_counting_restores_the_mode_and_computes_no_gradient(training):
    class Recorder(Named):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return self.layer(x)

    seen = []
    model = Recorder(nn.Linear(3, 3)).train(training)
    macs_per_token(model, {"x": torch.randn(2, 3)}, 2)
    assert seen == [(False, False)]
    assert model.training is model.layer.training is training


def test_counting_restores_the_mode_after_a_failure():
    model = Named(nn.Linear(3, 3)).train()
    with pytest.raises(RuntimeError):
        macs_per_token(model, {"x": torch.randn(2, 4)}, 2)
    assert model.training


def test_tied_parameters_count_once():
    model = tiny_gpt2()
    width, vocabulary, positions = 16, 40, 16
    block = 12 * width * width + (3 + 1 + 4 + 1) * width + 2 * 2 * width
    wanted = vocabulary * width + positions * width + 2 * block + 2 * width
    assert num_parameters(model) == wanted
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert num_parameters(model) == wanted + vocabulary * width


def test_matrix_parameters_leave_biases_out():
    model = nn.Sequential(nn.Linear(5, 4), LowRankLinear(4, 3, rank=2), nn.Linear(3, 9))
    assert num_matrix_parameters(model, ["0", "1"]) == 20 + 2 * 7
    assert num_matrix_parameters(model, ["2"]) == 27
    assert num_matrix_parameters(tiny_gpt2(), ["transformer.h.0.attn.c_attn"]) == 16 * 48

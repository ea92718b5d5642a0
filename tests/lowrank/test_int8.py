"""Linear layers in 8-bit integers: how near they stay, what they take, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lowrank import FixedRank, Pruner, Start
from lowrank.errors import LowRankError
from lowrank.int8 import num_int8_bytes, quantize_int8
from lowrank.linear import LowRankLinear
from tests.lowrank import tiny_bert


def rounded(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Nearest of 255 levels that are symmetric about 0, in double, a scale per row or column."""
    values = values.double()
    scale = values.abs().amax(dim, keepdim=True) / 127
    return (values / scale).round().clamp(-127, 127) * scale


def test_a_layer_is_near_one_with_rounded_weights():
    torch.manual_seed(0)
    # rows whose size differs by a factor of a million
    layer = nn.Linear(32, 7).requires_grad_(False)
    layer.weight.mul_(torch.logspace(-3, 3, 7)[:, None])
    layer.bias.zero_()
    x = torch.randn(64, 32)
    found = quantize_int8(nn.Sequential(layer))(x).double()
    wanted = x.double() @ rounded(layer.weight, dim=1).T
    # what is left is the rounding of the inputs, half a level of theirs on 32 terms
    level = float(x.max() - x.min()) / 127
    bound = level * layer.weight.abs().sum(1).double()
    assert ((found - wanted).abs() < bound).all()
    assert ((found - wanted).abs().amax(0) / wanted.abs().amax(0) < 0.05).all()


def test_every_linear_layer_of_an_encoder_is_quantized_and_the_model_stays():
    model = tiny_bert()
    before = copy.deepcopy(model.state_dict())
    small = Pruner(
        copy.deepcopy(model), FixedRank(density=0.4, start=Start()), exclude=["*classifier*"]
    ).finish()
    assert any(isinstance(module, LowRankLinear) for module in small.modules())
    inputs = {"input_ids": torch.arange(12).view(2, 6)}
    for original in (model, small):
        quantized = quantize_int8(original)
        left = [m for m in quantized.modules() if isinstance(m, nn.Linear)]
        assert left == []
        assert not quantized.training
        with torch.no_grad():
            there, here = original(**inputs).logits, quantized(**inputs).logits
        assert 0 < (there - here).abs().max() < 0.1 * there.abs().max()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bytes_are_those_of_all_tensors():
    model = tiny_bert()
    linear = [m for m in model.modules() if type(m) is nn.Linear]
    every = sum(p.numel() for p in model.parameters())
    weights = sum(m.weight.numel() for m in linear)
    rows = sum(m.out_features for m in linear)
    assert num_int8_bytes(quantize_int8(model)) == 4 * (every - weights) + weights + 8 * rows


def test_tied_and_forgotten_tensors_count_as_in_a_file():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Embedding(5, 4)
            self.other = nn.Embedding(5, 4)
            self.other.weight = self.one.weight
            self.layer = nn.Linear(4, 2, bias=False)
            self.register_buffer("kept", torch.zeros(3))
            self.register_buffer("forgotten", torch.zeros(100), persistent=False)

    assert num_int8_bytes(quantize_int8(Tied())) == 4 * (5 * 4 + 3) + 4 * 2 + 8 * 2


def test_what_cannot_be_quantized_is_named():
    with pytest.raises(LowRankError, match=r"no nn.Linear"):
        quantize_int8(nn.Sequential(nn.Embedding(3, 2)))
    with pytest.raises(LowRankError, match="CPU only"):
        quantize_int8(nn.Linear(2, 2, device="meta"))


def test_without_kernels_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lowrank.int8.available", lambda: False)
    with pytest.raises(LowRankError, match="no kernels"):
        quantize_int8(nn.Linear(2, 2))

"""Layers of fewer features against dense ones with rows and columns of zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lowrank import GateConfig, HardConcreteGate, SlicedLinear
from lowrank.gate import expected_value
from lowrank.linear import PrunedLinear, dense_weight
from lowrank.sliced import GatedInputLinear, sliced
from tests.lowrank import relative_error

IN, OUT = 9, 6

SOME_IN = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 1]).bool()
SOME_OUT = torch.tensor([0, 1, 1, 0, 1, 0]).bool()
ALL_IN, ALL_OUT = torch.ones(IN).bool(), torch.ones(OUT).bool()


class Holder(PrunedLinear):
    """The least that `sliced` needs."""

    def __init__(self, dense):
        super().__init__(dense)
        self.weight = nn.Parameter(dense_weight(dense).detach().clone())
        self.train(dense.training)

    def compact(self, keep):
        raise NotImplementedError


def make(kind="linear", bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(IN, OUT, bias=bias).to(dtype).eval()
    layer = Conv1D(OUT, IN)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.to(dtype).eval()


def small_of(dense, keep_in, keep_out):
    layer = Holder(dense)
    return sliced(layer, layer.weight.detach(), keep_in, keep_out)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep_out", [SOME_OUT, ALL_OUT], ids=["some out", "all out"])
@pytest.mark.parametrize("keep_in", [SOME_IN, ALL_IN], ids=["some in", "all in"])
def test_it_is_the_dense_layer_with_zeros(keep_in, keep_out, bias, batch):
    dense = make(bias=bias)
    small = small_of(dense, keep_in, keep_out)
    x = torch.randn(*batch, IN, dtype=torch.float64, requires_grad=True)
    weight = (dense.weight * keep_out[:, None] * keep_in).detach().requires_grad_()
    wanted = F.linear(x, weight, dense.bias)
    actual = small(x)
    assert actual.shape == (*batch, OUT)
    torch.testing.assert_close(actual, wanted)
    # the gradients too
    upstream = torch.randn_like(wanted)
    slope, weight_slope = torch.autograd.grad(wanted, (x, weight), upstream)
    small_slope, small_weight_slope = torch.autograd.grad(actual, (x, small.weight), upstream)
    torch.testing.assert_close(small_slope, slope)
    torch.testing.assert_close(small_weight_slope, weight_slope[keep_out][:, keep_in])


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_it_stores_the_kept_features_alone(kind):
    dense = make(kind)
    small = small_of(dense, SOME_IN, SOME_OUT)
    assert type(small) is SlicedLinear
    assert (small.num_in, small.num_out) == (5, 3)
    assert torch.equal(small.weight, dense_weight(dense)[SOME_OUT][:, SOME_IN])
    assert torch.equal(small.bias, dense.bias)
    assert small.kept_in.tolist() == [0, 3, 4, 6, 8]
    assert small.kept_out.tolist() == [1, 2, 4]
    assert small.kept_in.dtype == torch.int32
    assert not small.training
    assert f"{IN}, {OUT}, num_in=5, num_out=3" in repr(small)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_with_all_features_it_is_dense_again(kind):
    dense = make(kind)
    small = small_of(dense, ALL_IN, ALL_OUT)
    assert type(small) is type(dense)
    assert torch.equal(small.weight, dense.weight)


def test_an_index_of_all_features_is_not_kept():
    small = small_of(make(), SOME_IN, ALL_OUT)
    assert list(small.state_dict()) == ["weight", "bias", "kept_in"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_gives_the_dtype_that_a_dense_layer_would(dtype):
    dense = make(dtype=torch.float32)
    x = torch.randn(3, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert small_of(dense, SOME_IN, SOME_OUT)(x).dtype == dense(x).dtype == dtype


@pytest.mark.parametrize("keep_out", [SOME_OUT, ALL_OUT], ids=["some out", "all out"])
def test_its_shapes_are_static(keep_out):
    small, x = small_of(make(), SOME_IN, keep_out), torch.randn(4, IN, dtype=torch.float64)
    exported = torch.export.export(small, (x,)).module()
    torch.testing.assert_close(exported(x), small(x))


# --- gates on input features


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@torch.no_grad()
def test_a_gate_multiplies_its_input_feature(kind):
    dense = make(kind)
    layer = GatedInputLinear(dense, HardConcreteGate(IN, GateConfig(temperature=2 / 3)))
    x = torch.randn(4, IN, dtype=torch.float64)
    assert relative_error(layer(x), dense(x)) < 1e-6
    assert layer.weight.is_contiguous()
    layer.gate.parameter.copy_(torch.linspace(-3, 3, IN))
    z = expected_value(layer.gate.parameter.double(), layer.gate.config)
    wanted = F.linear(x, layer.weight * z, dense.bias)
    assert relative_error(layer(x), wanted) < 1e-6
    # folded into the weights that are left
    small = layer.compact(SOME_IN)
    wanted = F.linear(x, layer.weight * z * SOME_IN, dense.bias)
    torch.testing.assert_close(small(x), wanted)


def test_gates_on_inputs_sample_in_training_and_get_their_gradient():
    layer = GatedInputLinear(make(), HardConcreteGate(IN, GateConfig(init_open_prob=0.6))).train()
    layer.gate.noise.fill_(0.6)
    x, upstream = (torch.randn(4, size, dtype=torch.float64) for size in (IN, OUT))
    z = layer.gate()
    assert ((z > 0) & (z < 1)).all()
    layer(x).backward(upstream)
    z_slope = torch.autograd.grad(layer.gate().sum(), layer.gate.parameter)[0]
    # dL/dz_j = sum over rows of x_j (W^T g)_j
    wanted = (x * (upstream @ layer.weight)).sum(0).detach() * z_slope
    torch.testing.assert_close(layer.gate.parameter.grad.double(), wanted, rtol=1e-4, atol=1e-6)

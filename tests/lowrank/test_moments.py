from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank import LowRankError, find_layers
from lowrank.moments import InputMoments, MomentSums, collect_moments
from tests.lowrank import tiny_bert, tiny_gpt2, token_ids

QUERY, KEY, VALUE = (
    f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value")
)


def random_rows(count, width, seed=0, mean=0.0, spread=1.0, dtype=torch.float64):
    """Correlated rows, [count, width]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing
    return (mean + spread * rows).to(dtype)


def sums_of(*parts):
    sums = MomentSums(parts[0].shape[1])
    for part in parts:
        sums.add(part)
    return sums


def check(sums, rows, tolerance=1e-12):
    """Against two passes of numpy over all rows."""
    rows = rows.reshape(-1, rows.shape[-1]).double().numpy()
    moments = sums.moments()
    covariance = np.cov(rows, rowvar=False, bias=True).reshape(2 * rows.shape[1:])
    scale = np.abs(covariance).max() or 1.0
    assert moments.count == sums.count == len(rows)
    assert moments.mean.dtype == moments.covariance.dtype == torch.float64
    spread = tolerance * np.abs(rows).max()
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=0, atol=spread)
    np.testing.assert_allclose(moments.covariance, covariance, rtol=0, atol=tolerance * scale)
    assert torch.equal(moments.covariance, moments.covariance.t())


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any),
    width=st.integers(1, 6),
    workers=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_batches_and_workers_make_no_difference(counts, width, workers, seed):
    parts = random_rows(sum(counts), width, seed, mean=3.0).split(counts)
    check(sums_of(*parts), torch.cat(parts))
    shards = [sums_of(torch.empty(0, width), *parts[rank::workers]) for rank in range(workers)]
    check(shards[0].merge(shards[1:]), torch.cat(parts))
    check(shards[-1].merge(shards[:-1]), torch.cat(parts))


def test_a_mean_far_from_zero_costs_no_digits():
    rows = random_rows(4000, 5, mean=1e4, spread=1.0)
    check(sums_of(*rows.split(64)), rows, tolerance=1e-10)
    # float32 rows are summed as exactly: their own rounding is in both
    rough = rows.float()
    check(sums_of(*rough.split(64)), rough, tolerance=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_any_precision_are_summed_in_float64(dtype):
    rows = random_rows(500, 4, mean=2.0, dtype=dtype)
    check(sums_of(*rows.split(50)), rows)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny_rows_have_finite_moments(scale):
    rows = random_rows(50, 3, spread=scale, mean=scale, dtype=torch.float32)
    check(sums_of(*rows.split(7)), rows)


def test_the_second_moment_is_that_of_the_rows():
    rows = random_rows(30, 4, mean=1.5)
    second = sums_of(rows).moments().second_moment
    torch.testing.assert_close(second, rows.t() @ rows / 30, rtol=1e-12, atol=0)


def test_one_row_has_no_spread():
    row = torch.tensor([[1.0, -2.0]])
    moments = sums_of(row).moments()
    assert moments.mean.tolist() == [1.0, -2.0]
    assert not moments.covariance.any()


def test_merging_makes_a_new_object():
    first, second = sums_of(random_rows(5, 3)), sums_of(random_rows(6, 3, seed=1))
    before = first.moments(), second.moments()
    merged = first.merge([second])
    merged.add(random_rows(4, 3, seed=2))
    assert merged.count == 15
    for sums, moments in zip((first, second), before, strict=True):
        assert sums.count == moments.count
        assert torch.equal(sums.mean, moments.mean)
        assert torch.equal(sums.moments().covariance, moments.covariance)


def test_sums_travel_between_processes():
    rows = random_rows(9, 3)
    arrived = pickle.loads(pickle.dumps(sums_of(rows)))
    check(arrived, rows)
    check(arrived.merge([sums_of(rows)]), torch.cat([rows, rows]))


def test_sums_over_nothing_have_no_moments():
    sums = sums_of(torch.empty(0, 3))
    with pytest.raises(LowRankError, match="no row of input was seen"):
        sums.merge([MomentSums(3)]).moments()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite_are_reported(value):
    rows = random_rows(8, 3)
    rows[2, 1] = value
    with pytest.raises(LowRankError, match="moments of 8 rows of input hold values that are not"):
        sums_of(*rows.split(4)).moments()
    with pytest.raises(LowRankError, match="not finite"):
        InputMoments(1, torch.zeros(1), torch.tensor([[value]]))


@pytest.mark.parametrize("shape", [(4,), (2, 4), (1, 2, 3)])
def test_rows_of_another_width_are_refused(shape):
    with pytest.raises(LowRankError, match=r"rows of shape \[n, 3\] are needed"):
        MomentSums(3).add(torch.ones(shape))
    with pytest.raises(LowRankError, match="3 features cannot take in 2"):
        MomentSums(3).merge([MomentSums(2)])


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_sums_what_the_cpu_does(tf32):
    rows = random_rows(4000, 32, mean=1e3, dtype=torch.float32)
    sums = MomentSums(32, "cuda")
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        with torch.autocast("cuda", torch.bfloat16):
            for part in rows.split(500):
                sums.add(part.cuda())
    finally:
        torch.set_float32_matmul_precision(precision)
    assert sums.scatter.is_cuda
    check(pickle.loads(pickle.dumps(sums)), rows, tolerance=1e-6)


class Inputs:
    """What layers receive, written down by hooks of the test's own; rows kept by the mask."""

    def __init__(self, layers):
        self.rows = {name: [] for name in layers}
        self.mask = None
        self.handles = [
            layer.register_forward_pre_hook(
                lambda _, args, name=name: self.rows[name].append(self.keep(args[0]))
            )
            for name, layer in layers.items()
        ]

    def keep(self, x):
        x = x.detach().clone()
        masked = self.mask is not None and x.shape[:-1] == self.mask.shape
        return x[self.mask.bool()] if masked else x.reshape(-1, x.shape[-1])

    def of(self, model, batches):
        """All rows of each layer, in passes of the test's own."""
        with torch.no_grad():
            for batch in batches:
                self.mask = batch.get("attention_mask")
                model(**{name: batch[name] for name in batch if name != "labels"})
        for handle in self.handles:
            handle.remove()
        return {name: torch.cat(rows) for name, rows in self.rows.items()}


def bert_batches():
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])
    return [
        {"input_ids": token_ids(seed=seed), "attention_mask": mask.roll(seed, 0), "labels": 7}
        for seed in range(3)
    ]


def test_every_layer_of_a_padded_encoder():
    model, batches = tiny_bert(), bert_batches()
    layers = find_layers(model).layers
    collected = collect_moments(model, layers, batches)
    expected = Inputs(layers).of(model, batches)
    assert list(collected) == list(layers)
    for name, rows in expected.items():
        check(collected[name], rows, tolerance=1e-10)
    assert collected[QUERY].count == 3 * 15
    assert collected["classifier"].count == 3 * 3  # one row per sequence, none of them padding
    assert collected[QUERY] is collected[KEY] is collected[VALUE]
    assert len(set(map(id, collected.values()))) == len(layers) - 4


def test_every_layer_of_a_decoder_without_a_mask():
    model = tiny_gpt2()
    layers = find_layers(model, exclude=["lm_head"]).layers
    batches = [{"input_ids": token_ids(seed=seed)} for seed in range(2)]
    collected = collect_moments(model, layers, batches)
    for name, rows in Inputs(layers).of(model, batches).items():
        assert len(rows) == 2 * 24
        check(collected[name], rows, tolerance=1e-10)


class Probe(nn.Module):
    """Layers that are fed by a function of the test's choice."""

    def __init__(self, feed, *names, width=4):
        super().__init__()
        self.feed = feed
        self.layers = nn.ModuleDict({name: nn.Linear(width, width) for name in names})

    def forward(self, x, **others):
        return self.feed(self.layers, x, **others)

    def collect(self, *inputs, **others):
        return collect_moments(self, self.layers, [{"x": x, **others} for x in inputs])


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_padding_is_dropped_from_flattened_inputs_too(flatten, dtype):
    x, mask = random_rows(6, 4).float().reshape(2, 3, 4), torch.tensor([[1, 1, 0], [0, 1, 0]])

    def feed(layers, x, attention_mask):
        return layers["a"](x.flatten(0, 1) if flatten else x)

    collected = Probe(feed, "a").collect(x, attention_mask=mask.to(dtype))
    check(collected["a"], x[mask.bool()])


@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (2, 4), (3,)])
def test_a_mask_of_other_positions_drops_nothing(shape):
    x = random_rows(6, 4).float().reshape(2, 3, 4)
    model = Probe(lambda layers, x, attention_mask: layers["a"](x), "a")
    check(model.collect(x, attention_mask=torch.zeros(shape))["a"], x)


def test_a_pass_of_padding_alone_reaches_the_layer_but_adds_nothing():
    x = random_rows(6, 4).float().reshape(2, 3, 4)
    model = Probe(lambda layers, x, attention_mask: layers["a"](x), "a")
    assert model.collect(x, attention_mask=torch.zeros(2, 3))["a"].count == 0


def test_layers_share_sums_until_their_inputs_part():
    def feed(layers, x):
        layers["a"](x)
        layers["b"](x.view(-1, 4) if x.ndim == 2 else x)
        layers["c"](x if x.sum() > 0 else 2 * x)

    positive, negative = random_rows(5, 4).float().abs(), -random_rows(3, 4).float().abs()
    model = Probe(feed, "a", "b", "c")
    collected = model.collect(positive, positive)
    assert collected["a"] is collected["b"] is collected["c"]
    collected = model.collect(positive, negative, positive)
    assert collected["a"] is collected["b"]
    check(collected["a"], torch.cat([positive, negative, positive]), tolerance=1e-6)
    check(collected["c"], torch.cat([positive, 2 * negative, positive]), tolerance=1e-6)


@pytest.mark.parametrize("inference", [False, True])
def test_a_tensor_changed_in_place_is_another_input(inference):
    def feed(layers, x):
        y = x.clone()
        layers["a"](y)
        y.mul_(2)
        layers["b"](y)

    x = random_rows(6, 4).float()
    with torch.inference_mode(inference):
        collected = Probe(feed, "a", "b").collect(x)
    check(collected["a"], x)
    check(collected["b"], 2 * x)


def test_memory_given_to_a_later_input_is_not_taken_for_the_earlier_one():
    def feed(layers, x):
        for factor, layer in enumerate(layers.values()):
            layer(x * factor)  # freed at once, its address is free for the next

    x = random_rows(6, 4).float()
    names = "abcdefghij"
    collected = Probe(feed, *names).collect(x, x)
    for factor, name in enumerate(names):
        check(collected[name], torch.cat([factor * x, factor * x]))


def test_a_layer_used_twice_counts_both_uses():
    def feed(layers, x):
        layers["a"](x)
        layers["b"](x)
        layers["a"](x)
        layers["a"](input=3 * x)

    x = random_rows(6, 4).float()
    collected = Probe(feed, "a", "b").collect(x)
    check(collected["a"], torch.cat([x, x, 3 * x]))
    check(collected["b"], x)


def test_training_flags_are_restored_and_dropout_was_off():
    frozen = nn.Dropout(0.5)
    # a parent that trains holds the frozen module too, after its own turn
    model = nn.Sequential(frozen, nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5), frozen)).train()
    frozen.eval()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    assert flags == [True, False, False, True, True]
    x = random_rows(6, 4).float()
    dropped = nn.Sequential(nn.Dropout(0.5), model)
    check(collect_moments(dropped, {"1": model[1]}, [{"input": x}])["1"], x)
    assert [module.training for module in dropped.modules()] == [True, True, *flags]


def test_no_gradient_is_recorded():
    def feed(layers, x):
        assert not layers["a"](x).requires_grad

    x = random_rows(6, 4).float().requires_grad_()
    sums = Probe(feed, "a").collect(x)["a"]
    assert not sums.mean.requires_grad
    assert torch.is_grad_enabled()


def test_hooks_and_flags_do_not_outlive_a_failure():
    def feed(layers, x):
        layers["a"](x)
        raise RuntimeError("out of luck")

    model = Probe(feed, "a", "b").train()
    with pytest.raises(RuntimeError, match="out of luck"):
        model.collect(random_rows(6, 4).float())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_hooks_are_removed_and_others_stay():
    model = Probe(lambda layers, x: layers["a"](x), "a")
    calls = []
    model.layers["a"].register_forward_pre_hook(lambda *_: calls.append(1))
    model.collect(random_rows(6, 4).float())
    assert len(model.layers["a"]._forward_pre_hooks) == 1
    assert calls == [1]


def test_a_layer_that_no_input_reaches_is_named():
    model = Probe(lambda layers, x: layers["b"](x), "a", "b", "c")
    with pytest.raises(LowRankError, match=r"no input reached 'a', 'c'$"):
        model.collect(random_rows(6, 4).float())
    with pytest.raises(LowRankError, match=r"no input reached 'a', 'b', 'c'$"):
        model.collect()

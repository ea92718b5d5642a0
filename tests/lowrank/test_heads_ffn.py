"""Heads and feed-forward neurons: what the method promises the pruner, on every known family."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

import lowrank
from lowrank import (
    DensityError,
    HardConcreteGate,
    HeadsFfn,
    LowRankError,
    Macs,
    Pruner,
    SurgeryError,
)
from lowrank.counting import macs_per_token, num_matrix_parameters, num_parameters
from lowrank.currency import Latency, positions_per_token
from lowrank.hf import load_pretrained, save_pretrained
from lowrank.linear import dense_weight
from lowrank.narrow import GatedUnits
from tests.lowrank import relative_error
from tests.lowrank.every_method import assert_same
from tests.lowrank.transformers_zoo import (
    BLOCKS,
    EXCLUDE,
    FAMILIES,
    HEAD_COST,
    HEAD_SIZE,
    HEADS,
    INNER,
    NEURON_COST,
    TOTAL,
    WIDTH,
    build,
    inputs,
    logits,
    matrices,
)

STEPS = 12
ATTENTIONS = ("eager", "sdpa")
every_family = pytest.mark.parametrize("family", FAMILIES)


def every_model(test):
    return every_family(pytest.mark.parametrize("attention", ATTENTIONS)(test))


class ExactGate(HardConcreteGate):
    """In evaluation mode the float64 that compaction folds in, not its float32."""

    def forward(self):
        return self.value()


def prune(model, density=0.5, seed=11, **fields):
    method = HeadsFfn(**({"density": density, "gated_steps": STEPS} | fields))
    return Pruner(model, method, exclude=EXCLUDE, seed=seed)


def scramble(pruner, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in pruner.layers.values():
            gate = layer.gate.parameter
            gate.copy_(2 * torch.randn(gate.shape, generator=generator))


def shut(pruner, projection):
    with torch.no_grad():
        for name, keep in projection.keep.items():
            pruner.layers[name].gate.parameter[~keep] = -60


def compacted(family, attention="eager", density=0.5, **fields):
    pruner = prune(build(family, attention=attention, **fields), density)
    scramble(pruner)
    return pruner.finish()


def train(pruner, optimizer, first=0, last=STEPS):
    pruner.model.train()
    for step in range(first, last):
        wanted = torch.tanh(logits(pruner.model, seed=step).detach()) + step % 3
        loss = (logits(pruner.model, seed=step) - wanted).square().mean() + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    pruner.model.eval()


def optimizer_of(pruner):
    return torch.optim.AdamW(pruner.parameter_groups(1e-2))


# --- insertion


@every_model
@torch.no_grad()
def test_insertion_preserves_the_function_in_evaluation(family, attention):
    dense = build(family, attention=attention)
    pruner = prune(copy.deepcopy(dense))
    assert set(pruner.layers) == {consumer for _, _, consumer, _ in matrices(dense)}
    assert all(isinstance(layer, GatedUnits) for layer in pruner.layers.values())
    assert pruner.num_dense == TOTAL
    assert pruner.expected_density().item() == pytest.approx(1, abs=2e-3)
    assert relative_error(logits(pruner.model), logits(dense)) < 1e-6


@every_family
@torch.no_grad()
def test_at_full_density_every_layer_comes_back_as_it_was(family):
    dense = build(family)
    small = prune(copy.deepcopy(dense), density=1.0).finish()
    assert [type(m) for m in small.modules()] == [type(m) for m in dense.modules()]
    assert relative_error(logits(small), logits(dense)) < 1e-12


@every_family
@torch.no_grad()
def test_a_gate_multiplies_its_head_or_its_neuron(family):
    """What the consumer reads, seen by a hook, and its columns of the dense weight."""
    dense = build(family)
    for kind, _, consumer, size in matrices(dense):
        pruner = prune(copy.deepcopy(dense))
        layer = pruner.layers[consumer]
        num = HEADS if kind == "heads" else INNER
        assert layer.gate.parameter.shape == (num,)
        layer.gate.parameter[1] = -60
        seen: list = []
        dense_layer = dense.get_submodule(consumer)
        handle = dense_layer.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        logits(dense)
        handle.remove()
        x = seen[0].clone()
        wanted = x.clone()
        wanted[..., size : 2 * size] = 0
        assert relative_error(layer(x), dense_layer(wanted)) < 1e-6


def test_a_refusal_leaves_the_model_as_it_was():
    model = build("Bert")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"BertPooler, whose heads"):
        Pruner(model, HeadsFfn(density=0.5), exclude=["*classifier*"])
    # one head and one neuron in each of two blocks
    least = BLOCKS * (HEAD_COST + NEURON_COST) / TOTAL
    with pytest.raises(DensityError, match=rf"density >= {least:.4f}\d* must hold to keep"):
        prune(model, density=least - 0.001)
    assert_same(model.state_dict(), before)
    assert prune(model, density=least + 1e-9).project().ranks == dict.fromkeys(
        [consumer for _, _, consumer, _ in matrices(model)], 1
    )


# --- training


@every_family
def test_every_step_reaches_every_parameter_with_a_finite_gradient(family):
    pruner = prune(build(family))
    optimizer = optimizer_of(pruner)
    pruner.model.train()
    for step in range(STEPS + 3):  # also past the end of the gated phase
        assert 0 < pruner.expected_density().item() <= 1 + 1e-6
        assert 0.5 <= pruner.target <= 1
        (logits(pruner.model, seed=step).square().mean() + pruner.penalty()).backward()
        for name, parameter in pruner.model.named_parameters():
            # a parameter without a gradient stops data-parallel training
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()


@torch.no_grad()
def test_what_is_drawn_is_a_function_of_seed_and_step_alone():
    first, second, other = (prune(build("GPT2"), seed=seed) for seed in (11, 11, 12))
    before = None
    for _ in range(3):
        state = torch.get_rng_state()
        outputs = [logits(p.model.train()) for p in (first, second, other)]
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], logits(first.model))
        assert not torch.equal(outputs[0], outputs[2])
        assert before is None or not torch.equal(outputs[0], before)
        before = outputs[0]
        for pruner in (first, second, other):
            pruner.step()
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["Bert", "GPT2"])
@pytest.mark.parametrize("stop", [0, 5, STEPS])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(family, stop):
    straight = prune(build(family))
    train(straight, optimizer_of(straight))

    first = prune(build(family))
    optimizer = optimizer_of(first)
    train(first, optimizer, 0, stop)
    # GPT-2's head is tied, and a file holds a tensor once
    state = {n: t.clone() for n, t in first.model.state_dict().items()}
    model_state = load_tensors(save_tensors(state))
    pruner_state = load_tensors(save_tensors(first.state_dict()))
    optimizer_state = copy.deepcopy(optimizer.state_dict())

    second = prune(build(family, seed=1))  # weights that the checkpoint must replace
    optimizer = optimizer_of(second)
    second.model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(pruner_state)
    assert second.step_index == stop
    train(second, optimizer, stop, STEPS)

    assert_same(second.model.state_dict(), straight.model.state_dict())
    assert_same(second.finish().state_dict(), straight.finish().state_dict())


# --- finishing


@pytest.mark.parametrize("density", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["Bert", "DistilBert", "GPT2"])
def test_the_density_is_met_to_a_unit(family, seed, density):
    pruner = prune(build(family), density)
    scramble(pruner, seed)
    projection = pruner.project()
    spent = 0
    kinds = {consumer: kind for kind, _, consumer, _ in matrices(pruner.model)}
    prices = {"heads": HEAD_COST, "neurons": NEURON_COST}
    for name, keep in projection.keep.items():
        spent += int(keep.sum()) * prices[kinds[name]]
    assert spent <= density * TOTAL
    assert projection.density == pytest.approx(spent / TOTAL, abs=1e-12)
    for name, keep in projection.keep.items():
        assert keep.any()
        if not keep.all():
            assert spent + prices[kinds[name]] > density * TOTAL
        # the best of their layer
        score = pruner.layers[name].gate.parameter.detach()
        assert keep.all() or score[keep].min() >= score[~keep].max()
    names = list(pruner.shapes)
    small = pruner.finish(projection)
    assert num_matrix_parameters(small, names) == spent


@every_model
@torch.no_grad()
def test_compaction_computes_what_the_gates_kept(family, attention):
    dense = build(family, attention=attention)
    pruner = prune(copy.deepcopy(dense))
    for layer in pruner.layers.values():
        layer.gate.__class__ = ExactGate
    scramble(pruner)
    projection = pruner.project()
    shut(pruner, projection)
    gated = logits(pruner.model)
    for name, layer in pruner.layers.items():
        # by hand: the dense model with scaled columns
        weight = dense_weight(dense.get_submodule(name))
        z = layer.gate.value() / HardConcreteGate(1, layer.gate.config).value()
        weight.mul_((z * projection.keep[name]).repeat_interleave(layer.unit_size))
    small = pruner.finish(projection)
    assert relative_error(logits(small), gated) < 1e-10
    assert relative_error(logits(small), logits(dense)) < 1e-10


@every_model
@torch.no_grad()
def test_the_blocks_are_really_narrower(family, attention):
    dense = build(family, attention=attention)
    pruner = prune(copy.deepcopy(dense))
    scramble(pruner)
    projection = pruner.project()
    small = pruner.finish(projection)
    for kind, producers, consumer, size in matrices(dense):
        keep = projection.keep[consumer]
        columns = keep.repeat_interleave(size)
        width = int(columns.sum())
        assert 0 < width < len(columns)
        layer = small.get_submodule(consumer)
        assert type(layer) is nn.Linear
        assert layer.weight.shape == (WIDTH, width)
        assert torch.equal(layer.bias, dense.get_submodule(consumer).bias)
        for name in producers:
            producer, before = small.get_submodule(name), dense.get_submodule(name)
            stacked = 3 if family == "GPT2" and kind == "heads" else 1
            rows = columns.repeat(stacked)
            assert torch.equal(producer.weight, dense_weight(before)[rows])
            assert torch.equal(producer.bias, before.bias[rows])
            assert producer.out_features == stacked * width
    assert num_parameters(small) < num_parameters(dense)
    tokens = inputs()["input_ids"].numel()
    assert macs_per_token(small, inputs(), tokens) < macs_per_token(dense, inputs(), tokens)


@every_family
@torch.no_grad()
def test_attention_modules_say_how_many_heads_are_left(family):
    pruner = prune(build(family))
    scramble(pruner)
    projection = pruner.project()
    small = pruner.finish(projection)
    for kind, producers, consumer, _ in matrices(small):
        if kind == "heads":
            owner = small.get_submodule(producers[0].rpartition(".")[0])
            num = int(projection.keep[consumer].sum())
            count, total = {
                "GPT2": ("num_heads", "split_size"),
                "DistilBert": ("n_heads", None),
            }.get(family, ("num_attention_heads", "all_head_size"))
            assert getattr(owner, count) == num < HEADS
            assert total is None or getattr(owner, total) == num * HEAD_SIZE
    # one attention map per head that is left
    maps = small(**inputs(), output_attentions=True).attentions
    heads = [int(projection.keep[c].sum()) for kind, _, c, _ in matrices(small) if kind == "heads"]
    assert [one.shape[1] for one in maps] == heads


@every_family
def test_finish_leaves_a_model_that_can_be_trained(family):
    small = compacted(family)
    assert not any(isinstance(module, GatedUnits) for module in small.modules())
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (logits(small) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_generation_with_a_cache_is_generation_by_whole_passes(cache):
    small = compacted("GPT2", attention="sdpa")
    prompt = inputs()["input_ids"][:1, :4]
    sequence = prompt
    for _ in range(12):
        following = small(input_ids=sequence).logits[:, -1].argmax(-1)
        sequence = torch.cat([sequence, following[:, None]], dim=1)
    written = small.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=12,
        do_sample=False,
        use_cache=cache,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(written, sequence)


# --- floors and budgets


def test_floors_are_a_fraction_of_what_a_uniform_choice_leaves():
    for fraction, heads, neurons in ((0.0, 1, 1), (0.5, 1, 6), (1.0, 2, 12)):
        pruner = prune(build("Bert"), floor_fraction=fraction)
        wanted = {
            consumer: heads if kind == "heads" else neurons
            for kind, _, consumer, _ in matrices(pruner.model)
        }
        assert pruner.control.floors == wanted
        with torch.no_grad():  # the worst scores of the model do not empty a block
            for name in list(pruner.layers)[:2]:
                pruner.layers[name].gate.parameter.fill_(-50)
        ranks = pruner.project().ranks
        assert all(ranks[name] >= wanted[name] for name in ranks)
        assert [ranks[name] for name in list(pruner.layers)[:2]] == [heads, neurons]


@pytest.mark.parametrize("fields", [{"floor_fraction": -0.1}, {"floor_fraction": 1.5}])
def test_an_impossible_floor_is_refused(fields):
    with pytest.raises(LowRankError, match="0 <= floor_fraction <= 1 must hold"):
        HeadsFfn(density=0.5, **fields)


def test_a_budget_in_macs_is_that_in_parameters_times_the_uses():
    """All matrices of the blocks are used once per token; half as often, nothing changes."""
    for factor in (1.0, 0.5):
        model = build("Bert")
        layers = lowrank.find_layers(model, exclude=EXCLUDE).layers
        positions = positions_per_token(model, layers, inputs(), inputs()["input_ids"].numel())
        assert set(positions.values()) == {1.0}
        currency = Macs({name: factor * number for name, number in positions.items()})
        method = HeadsFfn(density=0.5, gated_steps=STEPS)
        pruner = Pruner(model, method, exclude=EXCLUDE, currency=currency)
        assert sum(c.dense_cost for c in pruner.control.costs.values()) == factor * TOTAL
        scramble(pruner)
        plain = prune(build("Bert"))
        scramble(plain)
        assert pruner.project().ranks == plain.project().ranks


def test_a_budget_in_seconds_is_refused():
    with pytest.raises(LowRankError, match="needs a method that prunes ranks"):
        Pruner(build("Bert"), HeadsFfn(density=0.5), exclude=EXCLUDE, currency=Latency({}))


# --- export


@every_family
@torch.no_grad()
def test_what_is_exported_comes_back_bit_for_bit(family, tmp_path):
    small = compacted(family)
    loaded = lowrank.load(build(family, seed=9), lowrank.save(small, tmp_path)).eval()
    assert [type(module) for module in loaded.modules()] == [type(m) for m in small.modules()]
    assert_same(loaded.state_dict(), small.state_dict())
    assert torch.equal(logits(loaded), logits(small))
    assert repr(loaded) == repr(small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_family
@torch.no_grad()
def test_a_folder_is_enough_to_build_the_model_again(family, dtype, tmp_path):
    auto = "AutoModelForCausalLM" if family == "GPT2" else "AutoModelForSequenceClassification"
    small = compacted(family, attention="sdpa").to(dtype)
    loaded = load_pretrained(save_pretrained(small, tmp_path, auto))
    assert_same(loaded.state_dict(), small.state_dict())
    for attention in ATTENTIONS:
        small.set_attn_implementation(attention)
        loaded.set_attn_implementation(attention)
        assert torch.equal(logits(loaded), logits(small))
    for (_, module), (_, other) in zip(small.named_modules(), loaded.named_modules(), strict=True):
        for name in ("num_attention_heads", "all_head_size", "n_heads", "num_heads", "split_size"):
            assert getattr(module, name, None) == getattr(other, name, None)


# --- a problem whose answer is known

HALF = BLOCKS * (HEADS // 2 * HEAD_COST + INNER // 2 * NEURON_COST) / TOTAL


@pytest.mark.slow
def test_heads_and_neurons_that_do_nothing_are_found():
    """A model of half its heads and neurons, from which the start is some noise away."""
    true = build("Bert", num_labels=8).float()
    generator = torch.Generator().manual_seed(0)
    useful = {}
    with torch.no_grad():
        for kind, producers, consumer, size in matrices(true):
            weight = true.get_submodule(consumer).weight
            num = weight.shape[1] // size
            useful[consumer] = torch.randperm(num, generator=generator) < num // 2
            weight.mul_(useful[consumer].repeat_interleave(size))
            if kind == "neurons":  # at work on most inputs, or their use would hardly show
                true.get_submodule(producers[0]).bias.fill_(0.5)
    model = copy.deepcopy(true)
    with torch.no_grad():
        for _, producers, consumer, _ in matrices(model):
            for name in (*producers, consumer):
                weight = model.get_submodule(name).weight
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))

    # a patient rate: gates must not fall together before they can be told apart
    pruner = prune(model, density=HALF, gated_steps=300, penalty_lr=0.003)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3), weight_decay=0.0)
    pruner.model.train()
    for step in range(pruner.method.gated_steps):
        batch = inputs(rows=16, seed=step)
        with torch.no_grad():
            wanted = true(**batch).logits
        loss = (pruner.model(**batch).logits - wanted).square().mean() + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert pruner.expected_density().item() == pytest.approx(HALF, abs=0.05)
    keep = pruner.project().keep
    for kind, _, consumer, _ in matrices(true):
        right = (keep[consumer] == useful[consumer]).float().mean()
        # by chance 20 of 24 neurons would be right in one of a thousand runs
        assert right == 1 if kind == "heads" else right > 0.83

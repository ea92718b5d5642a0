"""Known blocks: where their units are, what they cost, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank import SurgeryError, find_layers
from lowrank.blocks import FORMS, find_units
from lowrank.linear import layer_shape
from tests.lowrank import mlp
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
    VOCAB,
    WIDTH,
    build,
    matrices,
)


def units(model, include=("*",), exclude=EXCLUDE):
    return find_units(model, find_layers(model, include, exclude).layers)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_its_units_are_found_in_the_order_of_their_layers(self, family):
        model = build(family)
        groups = units(model)
        assert {name: list(group.producers) for name, group in groups.items()} == {
            consumer: producers for _, producers, consumer, _ in matrices(model)
        }
        order = [name for name in find_layers(model, exclude=EXCLUDE).layers if name in groups]
        assert list(groups) == order
        assert {group.stacked for group in groups.values()} == {3 if family == "GPT2" else 1} | {1}

    def test_a_unit_costs_what_it_removes(self, family):
        model = build(family)
        layers = find_layers(model, exclude=EXCLUDE).layers
        groups = find_units(model, layers)
        for kind, producers, consumer, _ in matrices(model):
            cost = groups[consumer].shape.cost_of_units
            wanted = (HEADS, HEAD_COST) if kind == "heads" else (INNER, NEURON_COST)
            assert (cost.num_units, cost.unit_cost) == wanted
            # all units together are all matrices
            shapes = [layer_shape(layers[name]) for name in (*producers, consumer)]
            assert cost.dense_cost == sum(shape.num_dense for shape in shapes)
        dense = sum(layer_shape(layer).num_dense for layer in layers.values())
        assert sum(g.shape.cost_of_units.dense_cost for g in groups.values()) == dense == TOTAL

    def test_one_kind_of_units_can_be_left_out(self, family):
        model = build(family)
        neurons = [m for m in matrices(model) if m[0] == "neurons"]
        include = [name for _, producers, consumer, _ in neurons for name in (*producers, consumer)]
        groups = units(model, include)
        assert list(groups) == [consumer for _, _, consumer, _ in neurons]

    def test_a_block_that_is_matched_in_part_is_refused(self, family):
        model = build(family)
        _, producers, consumer, _ = matrices(model)[0]
        with pytest.raises(SurgeryError, match=r"pruned in all their matrices; .* did not, or is"):
            units(model, [consumer])
        with pytest.raises(SurgeryError, match=f"{consumer} did not, or is tied"):
            units(model, producers)


def test_the_families_of_the_tests_are_all_that_are_known():
    seen = set()
    for family in FAMILIES:
        for module in build(family).modules():
            kind = type(module)
            seen.add(f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
    assert set(FORMS) <= seen


def test_a_head_and_a_neuron_by_hand():
    """BERT-base: 12 heads of 64 and 3072 neurons, 768 wide."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=1))
    groups = units(model)
    heads = groups["encoder.layer.0.attention.output.dense"].shape.cost_of_units
    neurons = groups["encoder.layer.0.output.dense"].shape.cost_of_units
    assert (heads.num_units, heads.unit_cost) == (12, 3 * 64 * 768 + 768 * 64)
    assert (neurons.num_units, neurons.unit_cost) == (3072, 768 + 768)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": WIDTH, "d_kv": HEAD_SIZE, "d_ff": INNER, "num_heads": HEADS}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, num_layers=BLOCKS, **sizes))


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=WIDTH, state_size=4, num_hidden_layers=1)
    )


def decoder():
    """BERT as a decoder that attends to an encoder."""
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 1}
    return BertLMHeadModel(BertConfig(**sizes, is_decoder=True, add_cross_attention=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (t5, r"layer 'encoder\.block\.0\.layer\.0\.SelfAttention\.q' \(and 31 more\) is in a T5At"),
        (mamba, r"layer 'backbone\.layers\.0\.mixer\.in_proj' .* is in a MambaMixer"),
        (decoder, r"layer 'bert\.encoder\.layer\.0\.crossattention\.self\.query' .* BertCrossAtt"),
        (
            mlp,
            r"layer '0' \(and 2 more\) is in a Sequential, whose heads .* known are the blocks of",
        ),
        (lambda: nn.Linear(3, 3), "layer '' is in a Linear"),
    ],
)
def test_what_is_not_known_is_refused_by_name(make, message):
    model = make()
    with pytest.raises(SurgeryError, match=message):
        units(model, exclude=["*lm_head*", "*cls*"])


def test_a_matrix_outside_of_the_blocks_is_refused_by_name():
    with pytest.raises(SurgeryError, match=r"layer 'bert\.pooler\.dense' is in a BertPooler"):
        units(build("Bert"), exclude=["*classifier*"])


def test_matrices_that_do_not_fit_each_other_are_refused():
    model = build("Bert")
    attention = model.bert.encoder.layer[0].attention
    attention.self.attention_head_size = 5
    with pytest.raises(SurgeryError, match=r"layer\.0\.attention: .* in units of 5, got \[16, 16"):
        units(model)

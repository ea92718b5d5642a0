"""Compacted models as programs of torch.export."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lowrank import ExportError
from lowrank.graphs import Logits, example_inputs, input_names, pickled_parts, save_program
from lowrank.models import register
from tests.lowrank import relative_error, tiny_bert, tiny_gpt2
from tests.lowrank.test_auto import compacted, tiny_adaptive_decoder

KINDS = ["gpt2 with embedding", "llama", "bert", "narrow bert", "sliced gpt2"]
SHAPES = [(1, 1), (1, 7), (3, 12), (5, 2)]
"""None of them is the one that was traced."""


def test_inputs_are_those_that_model_and_tokenizer_know():
    full = SimpleNamespace(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    less = SimpleNamespace(model_input_names=["input_ids", "attention_mask"])
    everything = ("input_ids", "attention_mask", "token_type_ids")
    assert input_names(tiny_bert()) == everything[:2]
    assert input_names(tiny_bert(), full) == everything
    assert input_names(tiny_bert(), less) == everything[:2]


def test_examples_have_padding_at_the_end_and_nowhere_else():
    model = tiny_bert()
    inputs = example_inputs(model, ("input_ids", "attention_mask"), 3, 8)
    assert inputs["attention_mask"].tolist() == [[1] * 8, [1] * 5 + [0] * 3, [1] * 8]
    assert (
        (inputs["input_ids"] == model.config.pad_token_id) == (inputs["attention_mask"] == 0)
    ).all()
    again = example_inputs(model, ("input_ids", "attention_mask"), 3, 8)
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    assert list(example_inputs(model, ("input_ids",), 1, 4)) == ["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_program_computes_the_logits_of_any_batch_and_length(kind, tmp_path: Path):
    model, _ = compacted(kind)
    names = input_names(model)
    path = save_program(model, tmp_path, names)
    assert pickled_parts(path) == []
    program = torch.export.load(path).module()
    for batch, length in SHAPES:
        inputs = example_inputs(model, names, batch, length, seed=batch)
        wanted = Logits(model, names)(*inputs.values())
        assert relative_error(program(*inputs.values()), wanted) < 1e-6


def test_a_pickle_in_a_program_is_seen(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("x/data/sample_inputs/model.pt", b"pickle")
        archive.writestr("x/data/sample_inputs/other.pt", b"")
        archive.writestr(
            "x/data/weights/model_weights_config.json",
            '{"config": {"a": {"use_pickle": true}, "b": {"use_pickle": false}}}',
        )
    assert pickled_parts(tmp_path / "x.pt2") == ["x/data/sample_inputs/model.pt", "a"]


def test_what_cannot_become_a_graph_is_refused_by_name(tmp_path: Path):
    import transformers

    register()
    sru = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("sru", vocab_size=40, hidden_size=8)
    )
    with pytest.raises(ExportError, match="'sru' has no graph: it loops over the text"):
        save_program(sru, tmp_path, ("input_ids",))
    with pytest.raises(ExportError, match="'adaptive-decoder' has no graph: its shapes depend"):
        save_program(tiny_adaptive_decoder(), tmp_path, ("input_ids",))
    model = tiny_gpt2()
    model.transformer.h[0].mlp.c_fc.bias = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(ExportError, match=r"h.0.mlp.c_fc.bias is empty \(rank 0\)"):
        save_program(model, tmp_path, ("input_ids",))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_traced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tiny_gpt2()
    real = model.forward

    def forward(input_ids=None, attention_mask=None, use_cache=None):
        if input_ids.sum().item() > 0:
            return real(input_ids=input_ids)
        return real(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ExportError, match="GPT2LMHeadModel cannot be traced: "):
        save_program(model, tmp_path, ("input_ids", "attention_mask"))

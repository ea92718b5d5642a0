from __future__ import annotations

import json

import pytest
import torch

from lowrank.benchmark.presets import build, kind_of_auto_class, read_config
from lowrank.counting import num_parameters
from lowrank.errors import LowRankError


@pytest.mark.parametrize(
    ("name", "kind", "published"),
    [("bert-base", "encoder", 110e6), ("gpt2-small", "decoder", 124e6)],
)
def test_presets_have_the_published_sizes(name, kind, published):
    config, found = read_config(name)
    with torch.device("meta"):
        model = build(config, found, torch.float32)
    assert found == kind
    assert num_parameters(model) == pytest.approx(published, rel=0.01)


def test_a_preset_is_not_changed_by_its_use():
    assert read_config("bert-base")[0].to_dict() == read_config("bert-base")[0].to_dict()


def small(**fields):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"model_type": "bert", "vocab_size": 40, "intermediate_size": 24, **sizes, **fields}


def test_a_config_file_is_read_without_what_describes_its_weights(tmp_path):
    path = tmp_path / "config.json"
    fields = small(architectures=["BertForMaskedLM"], quantization_config={"quant_method": "gptq"})
    path.write_text(json.dumps(fields))
    config, kind = read_config(str(path))
    model = build(config, kind, torch.bfloat16)
    assert kind == "encoder"
    assert model.config.hidden_size == 16
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_weights_are_a_function_of_the_seed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(small()))
    config, kind = read_config(str(path), "encoder")
    one, again, other = (build(config, kind, torch.float32, seed) for seed in (1, 1, 2))
    for a, b, c in zip(*(m.parameters() for m in (one, again, other)), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_architectures_say_what_is_a_decoder(tmp_path, name):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2", "architectures": [name]}))
    assert read_config(str(path))[1] == "decoder"


def test_what_is_no_config_is_refused(tmp_path):
    with pytest.raises(LowRankError, match="'bert-large'"):
        read_config("bert-large")
    path = tmp_path / "config.json"
    for text, message in [
        ("[1]", "must hold an object"),
        ("{", "cannot be read"),
        (json.dumps(small()), "give the kind"),
        (json.dumps(small(model_type="no-such", architectures=["XForCausalLM"])), "no config of"),
    ]:
        path.write_text(text)
        with pytest.raises(LowRankError, match=message):
            read_config(str(path))
    with pytest.raises(LowRankError, match="bert-base is of a encoder, got kind 'decoder'"):
        read_config("bert-base", "decoder")


def test_a_manifest_says_the_kind():
    assert kind_of_auto_class("AutoModelForCausalLM") == "decoder"
    assert kind_of_auto_class("AutoModelForSequenceClassification") == "encoder"
    with pytest.raises(LowRankError, match="'AutoModel'"):
        kind_of_auto_class("AutoModel")

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowrank import ExportError, FlopL0, Pruner
from lowrank.counting import num_parameters
from lowrank.export import num_stored_parameters
from lowrank.hf import load_pretrained, load_tokenizer, save_pretrained
from lowrank.manifest import MANIFEST, read_manifest
from tests.lowrank import scramble_gates, tiny_bert, tiny_gpt2, token_ids

ROOT = Path(__file__).parents[2]
CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


def pruned(make, density=0.5):
    pruner = Pruner(make(), FlopL0(density=density))
    scramble_gates(pruner)
    return pruner.finish().eval()


@pytest.fixture
def gpt2_folder(tmp_path):
    return save_pretrained(pruned(tiny_gpt2), tmp_path, CAUSAL)


@pytest.mark.parametrize(("make", "auto_class"), [(tiny_gpt2, CAUSAL), (tiny_bert, CLASSIFIER)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_folder_is_enough_to_build_the_model_again(make, auto_class, dtype, tmp_path):
    small = pruned(make).to(dtype)
    save_pretrained(small, tmp_path, auto_class)
    torch.manual_seed(123)
    loaded = load_pretrained(tmp_path)
    assert type(loaded) is type(small)
    assert not loaded.training
    assert list(loaded.state_dict()) == list(small.state_dict())
    for name, value in small.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype == dtype
        assert torch.equal(loaded.state_dict()[name], value)
    ids = token_ids()
    assert torch.equal(loaded(input_ids=ids).logits, small(input_ids=ids).logits)
    assert num_stored_parameters(tmp_path) == num_parameters(loaded) == num_parameters(small)


def test_the_number_of_classes_comes_back(tmp_path):
    save_pretrained(pruned(lambda: tiny_bert(num_labels=5)), tmp_path, CLASSIFIER)
    assert load_pretrained(tmp_path).config.num_labels == 5


def test_metadata_and_auto_class_are_in_the_manifest(tmp_path):
    save_pretrained(tiny_gpt2(), tmp_path, CAUSAL, metadata={"density": 0.5})
    assert read_manifest(tmp_path)["metadata"] == {"auto_class": CAUSAL, "density": 0.5}


def test_a_tokenizer_comes_back(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[UNK]": 0, "low": 1, "rank": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    save_pretrained(tiny_gpt2(), tmp_path, CAUSAL, tokenizer=tokenizer)
    assert load_tokenizer(tmp_path)("low rank models")["input_ids"] == [1, 2, 0]


@pytest.mark.slow
@torch.no_grad()
def test_a_fresh_process_computes_the_same_logits(gpt2_folder):
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from lowrank.hf import load_pretrained\n"
        "model = load_pretrained(sys.argv[1])\n"
        "ids = torch.load(sys.argv[1] + '/ids.pt')\n"
        "torch.save(model(input_ids=ids).logits.detach(), sys.argv[1] + '/logits.pt')\n"
    )
    ids = token_ids()
    torch.save(ids, gpt2_folder / "ids.pt")
    subprocess.run(
        [sys.executable, "-c", script, str(gpt2_folder)],
        cwd=ROOT,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    wanted = pruned(tiny_gpt2)(input_ids=ids).logits
    assert torch.equal(torch.load(gpt2_folder / "logits.pt"), wanted)


def test_an_unknown_auto_class_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ExportError, match=r"auto_class must be one of .*, got 'AutoModel'"):
        save_pretrained(tiny_gpt2(), tmp_path / "model", "AutoModel")
    assert not (tmp_path / "model").exists()


def test_a_gated_model_is_refused(tmp_path):
    pruner = Pruner(tiny_gpt2(), FlopL0(density=0.5))
    with pytest.raises(ExportError, match=r"gates are still in the model"):
        save_pretrained(pruner.model, tmp_path, CAUSAL)
    with pytest.raises(ExportError, match="not a finished lowrank export"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("auto_class", [None, "os.system", 3])
def test_a_manifest_without_a_known_auto_class_is_refused(gpt2_folder, auto_class):
    manifest = read_manifest(gpt2_folder)
    manifest["metadata"]["auto_class"] = auto_class
    (gpt2_folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="auto_class must be one of"):
        load_pretrained(gpt2_folder)


def test_a_missing_configuration_is_named(gpt2_folder):
    (gpt2_folder / "config.json").unlink()
    with pytest.raises(ExportError, match=r"config.json: no such file"):
        load_pretrained(gpt2_folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "no such model"}'])
def test_a_broken_configuration_is_named(gpt2_folder, text):
    (gpt2_folder / "config.json").write_text(text)
    with pytest.raises(ExportError, match=r"config.json: cannot be read"):
        load_pretrained(gpt2_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 1}, r"layer 'transformer\.h\.1\.\S+' of the export does not exist"),
        ({"n_layer": 3}, r"missing: transformer\.h\.2\."),
        ({"n_embd": 32}, r"features in the export"),
        ({"vocab_size": 41}, r"of another shape: lm_head\.weight, transformer\.wte\.weight"),
    ],
)
def test_a_configuration_of_another_size_is_refused(gpt2_folder, change, message):
    config = json.loads((gpt2_folder / "config.json").read_text())
    (gpt2_folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ExportError, match=message):
        load_pretrained(gpt2_folder)

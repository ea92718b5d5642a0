"""Compacted models through transformers' own loading, with this package and without it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lowrank.auto
from lowrank import Agp, ExportError, FixedRank, HeadsFfn, Method, Pruner, Start
from lowrank.contract import TOLERANCES
from lowrank.forms import described_layers
from lowrank.hf import load_pretrained, save_pretrained
from lowrank.models import register
from lowrank.pivoting import pivoted
from tests.lowrank import tiny_bert, tiny_gpt2
from tests.lowrank.embeddings import tiny_llama

TOKENS = torch.arange(12)[None]


def tiny_adaptive_decoder() -> nn.Module:
    import transformers

    register()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "adaptive-decoder",
        vocab_size=40,
        cutoffs=[10, 20],
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


CAUSAL, CLASSES = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
MODELS: dict[str, Any] = {
    "gpt2": (tiny_gpt2, CAUSAL, False),
    "gpt2 with embedding": (tiny_gpt2, CAUSAL, True),
    "llama": (partial(tiny_llama, tied=False), CAUSAL, False),
    "bert": (tiny_bert, CLASSES, False),
    "bert with embedding": (tiny_bert, CLASSES, True),
    "adaptive decoder": (tiny_adaptive_decoder, CAUSAL, True),
    "narrow bert": (tiny_bert, CLASSES, False),
    "sliced gpt2": (tiny_gpt2, CAUSAL, False),
    "pivoted gpt2": (tiny_gpt2, CAUSAL, True),
    "pivoted bert": (tiny_bert, CLASSES, False),
}
METHODS: dict[str, Method] = {
    "narrow bert": HeadsFfn(density=0.6, gated_steps=1),
    "sliced gpt2": Agp(density=0.5, gated_steps=1, granularity="column"),
}
"""By default fixed ranks."""


def compacted(kind: str) -> tuple[Any, str]:
    make, auto_class, embeddings = MODELS[kind]
    method = METHODS.get(kind, FixedRank(density=0.4, start=Start()))
    exclude = ["*pooler*", "classifier", *([] if embeddings else ["*lm_head"])]
    pruner = Pruner(make(), method, exclude=exclude, embeddings=embeddings)
    model = pruner.finish().eval()
    if kind.startswith("pivoted"):
        with torch.no_grad():  # fresh biases are zeros, in any order
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
        pivoted(model)
    return model, auto_class


@pytest.fixture(params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, str, Path]:
    model, auto_class = compacted(request.param)
    folder = save_pretrained(model, tmp_path / "export", auto_class)
    return model, auto_class, folder


def from_pretrained(auto_class: str, folder: Path, **options: Any) -> Any:
    import transformers

    return getattr(transformers, auto_class).from_pretrained(folder, **options)


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS)[0]


def ties(model: nn.Module) -> list[set[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [group for group in names.values() if len(group) > 1]


def test_what_was_saved_is_loaded(exported):
    model, auto_class, folder = exported
    loaded = from_pretrained(auto_class, folder)
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded), output(model))
    assert described_layers(loaded) == described_layers(model) != {}
    assert ties(loaded) == ties(model)
    by_class = type(model).from_pretrained(folder)
    assert torch.equal(output(by_class), output(model))


def test_transformers_saves_it_again(exported, tmp_path):
    model, auto_class, folder = exported
    for number, source in enumerate((from_pretrained(auto_class, folder), load_pretrained(folder))):
        source.save_pretrained(tmp_path / str(number))
        again = from_pretrained(auto_class, tmp_path / str(number))
        assert torch.equal(output(again), output(model))
        stored = load_file(tmp_path / str(number) / "model.safetensors")
        assert sum(t.numel() for t in stored.values()) == sum(
            p.numel() for p in model.parameters()
        ) + sum(b.numel() for n, b in model.named_buffers() if n in stored)


BODIES = [kind for kind in MODELS if kind != "adaptive decoder"]  # which AutoModel does not know


@pytest.mark.parametrize("exported", BODIES, indirect=True)
def test_the_body_alone(exported):
    model, _, folder = exported
    import transformers

    body = transformers.AutoModel.from_pretrained(folder)
    assert torch.equal(output(body), output(model.base_model))


def test_casts_and_training_are_as_with_any_model(exported):
    _, auto_class, folder = exported
    assert from_pretrained(auto_class, folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    loaded = from_pretrained(auto_class, folder)
    assert not loaded.is_quantized
    loaded.train()(input_ids=TOKENS)[0].square().mean().backward()
    small = [loaded.get_submodule(name) for name in described_layers(loaded)]
    assert all(p.grad is not None for module in small for p in module.parameters())
    assert loaded.half().dtype == torch.float16
    assert copy.deepcopy(loaded).dtype == torch.float16


@pytest.mark.parametrize("kind", ["gpt2", "gpt2 with embedding", "llama"])
def test_generation_with_a_cache(kind, tmp_path):
    model, auto_class = compacted(kind)
    loaded = from_pretrained(auto_class, save_pretrained(model, tmp_path, auto_class))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    wanted = model.generate(TOKENS[:, :5], use_cache=False, **options)
    assert torch.equal(loaded.generate(TOKENS[:, :5], use_cache=True, **options), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2 with embedding", "llama", "bert"])
def test_half_precision_is_near_the_model(kind, dtype, tmp_path):
    model, auto_class = compacted(kind)
    folder = save_pretrained(model, tmp_path, auto_class)
    loaded = from_pretrained(auto_class, folder, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    wanted = output(model)
    # not equal to the model cast: transformers keeps the frequencies of positions in float32
    assert (output(loaded) - wanted).abs().max() <= TOLERANCES[dtype] * wanted.abs().max()


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
@pytest.mark.parametrize("kind", ["gpt2 with embedding", "bert"])
def test_a_device_map_places_the_factors(kind, device_map, tmp_path):
    pytest.importorskip("accelerate", reason="transformers needs it for device_map")
    model, auto_class = compacted(kind)
    folder = save_pretrained(model, tmp_path, auto_class)
    loaded = from_pretrained(auto_class, folder, device_map=device_map)
    assert described_layers(loaded) == described_layers(model)
    assert torch.equal(output(loaded).cpu(), output(model))
    assert ties(loaded) == ties(model)


def test_a_pipeline_continues_a_text(tmp_path):
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {f"w{number}": number for number in range(40)}
    raw = Tokenizer(WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="w0", pad_token="w0"
    )
    model, auto_class = compacted("gpt2 with embedding")
    folder = save_pretrained(model, tmp_path, auto_class, tokenizer)
    pipe = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    (made,) = pipe("w3 w7 w1", max_new_tokens=4, do_sample=False, return_full_text=False)
    ids = torch.tensor([[3, 7, 1]])
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    assert made["generated_text"].split() == [f"w{number}" for number in ids[0, 3:].tolist()]


def test_a_vocabulary_that_grew_is_saved_as_it_is(tmp_path):
    model, auto_class = compacted("gpt2 with embedding")
    loaded = from_pretrained(auto_class, save_pretrained(model, tmp_path / "a", auto_class))
    loaded.resize_token_embeddings(45)
    loaded.save_pretrained(tmp_path / "b")
    again = from_pretrained(auto_class, tmp_path / "b")
    assert output(again).shape[-1] == 45
    assert torch.equal(output(again), output(loaded))


class Largest(TorchDispatchMode):
    """The largest tensor that is made in memory."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.numel = max(self.numel, tensor.numel())
        return made


def test_no_dense_matrix_is_ever_made(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    pruner = Pruner(model, FixedRank(density=0.2, start=Start()), exclude=["lm_head"])
    folder = save_pretrained(pruner.finish(), tmp_path, CAUSAL)
    with Largest() as largest:
        from_pretrained(CAUSAL, folder)
    # the factors of a square matrix have 64 x 6 at the most, those of the others 256 x 10
    assert largest.numel < 64 * 64


PLAIN = """
import sys
sys.modules["lowrank"] = None  # as if it were not installed
import transformers
getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2])
"""


@pytest.mark.parametrize("class_name", [CAUSAL, "GPT2LMHeadModel"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt2 with embedding"])
def test_without_the_package_loading_fails_and_names_it(kind, class_name, tmp_path):
    model, auto_class = compacted(kind)
    folder = save_pretrained(model, tmp_path, auto_class)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, class_name, str(folder)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Unknown quantization type, got lowrank-orchestrator" in done.stderr
    assert "RuntimeError" in done.stderr.splitlines()[-1]


# --- damage


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"]["layers"])
    path.write_text(json.dumps(config))


NAME = "transformer.h.0.mlp.c_fc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{NAME}.projection"), f"{NAME}.projection is missing in model"),
        (lambda t: t.pop("transformer.ln_f.weight"), "transformer.ln_f.weight is missing in model"),
        (lambda t: t.update({f"{NAME}.weight": torch.ones(3, 3)}), rf"{NAME}.weight has shape"),
        (lambda t: t[f"{NAME}.weight"].fill_(float("nan")), f"{NAME}.weight holds NaN or infinity"),
    ],
)
def test_a_damaged_file_is_refused(change, message, tmp_path):
    model, auto_class = compacted("gpt2")
    folder = save_pretrained(model, tmp_path, auto_class)
    edit(folder, change)
    with pytest.raises(ExportError, match=message):
        from_pretrained(auto_class, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers[NAME].pop("rank"), rf"{NAME}' must have"),
        (lambda layers: layers[NAME].update(form="odd"), "must have a form"),
        (lambda layers: layers[NAME].update(rank=1), "has shape"),
        (lambda layers: layers.update(nowhere=layers.pop(NAME)), "layer 'nowhere' of the export"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message, tmp_path):
    model, auto_class = compacted("gpt2")
    folder = save_pretrained(model, tmp_path, auto_class)
    configure(folder, change)
    with pytest.raises(ExportError, match=message):
        from_pretrained(auto_class, folder)


def test_a_dense_model_needs_no_hook(tmp_path):
    folder = save_pretrained(tiny_gpt2(), tmp_path, CAUSAL)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert torch.equal(output(from_pretrained(CAUSAL, folder)), output(tiny_gpt2()))


def test_the_hook_compacts_nothing_by_itself():
    config = lowrank.auto.CompactedConfig(layers={})
    with pytest.raises(ExportError, match=r"to compact one, use lowrank\.Pruner"):
        lowrank.auto.CompactedQuantizer(config, pre_quantized=False).validate_environment()

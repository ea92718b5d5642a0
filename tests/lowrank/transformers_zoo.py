"""Tiny transformers of every family whose blocks are known, and of some that are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VOCAB, WIDTH, HEADS, INNER, BLOCKS = 40, 16, 4, 24, 2
HEAD_SIZE = WIDTH // HEADS

BERT_LIKE = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")
FAMILIES = (*BERT_LIKE, "DistilBert", "GPT2")
EXCLUDE = ("*classifier*", "*pooler*", "*lm_head*")
"""What is matched are the two blocks' matrices, as in a campaign."""

HEAD_COST = 4 * HEAD_SIZE * WIDTH
NEURON_COST = 2 * WIDTH
TOTAL = BLOCKS * (HEADS * HEAD_COST + INNER * NEURON_COST)


def build(family: str, seed: int = 0, attention: str = "eager", **fields: Any) -> nn.Module:
    """In float64 and evaluation mode, without dropout, weights and biases of order 1."""
    import transformers

    config_class = getattr(transformers, f"{family}Config")
    config = config_class(**_sizes(family), vocab_size=VOCAB, **fields)
    config._attn_implementation = attention
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForSequenceClassification"
    torch.manual_seed(seed)
    model = getattr(transformers, head)(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # else biases start at zero
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def _sizes(family: str) -> dict[str, Any]:
    if family == "GPT2":
        sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS}
        sizes |= {"n_inner": INNER, "n_positions": 24, "bos_token_id": 0, "eos_token_id": 0}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    elif family == "DistilBert":
        sizes = {"dim": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS, "hidden_dim": INNER}
        sizes |= {"max_position_embeddings": 24, "dropout": 0.0, "attention_dropout": 0.0}
        sizes |= {"seq_classif_dropout": 0.0}
    else:
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS}
        sizes |= {"intermediate_size": INNER, "max_position_embeddings": 24, "pad_token_id": 1}
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        sizes |= {"embedding_size": WIDTH} if family == "Electra" else {}
    return sizes | {"initializer_range": 0.3}


def inputs(rows: int = 3, length: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Token ids, of which the second row's last three are padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: nn.Module, **fields: Any) -> Tensor:
    return model(**inputs(**fields)).logits


def matrices(model: nn.Module) -> list[tuple[str, list[str], str, int]]:
    """Of every attention and every feed-forward part: kind, producers, consumer, unit size."""
    base, family = model.base_model_prefix, type(model).__name__
    found = []
    for block in range(BLOCKS):
        if family.startswith("GPT2"):
            path = f"{base}.h.{block}"
            found.append(("heads", [f"{path}.attn.c_attn"], f"{path}.attn.c_proj", HEAD_SIZE))
            found.append(("neurons", [f"{path}.mlp.c_fc"], f"{path}.mlp.c_proj", 1))
        elif family.startswith("DistilBert"):
            path = f"{base}.transformer.layer.{block}"
            three = [f"{path}.attention.{letter}_lin" for letter in "qkv"]
            found.append(("heads", three, f"{path}.attention.out_lin", HEAD_SIZE))
            found.append(("neurons", [f"{path}.ffn.lin1"], f"{path}.ffn.lin2", 1))
        else:
            path = f"{base}.encoder.layer.{block}"
            three = [f"{path}.attention.self.{name}" for name in ("query", "key", "value")]
            found.append(("heads", three, f"{path}.attention.output.dense", HEAD_SIZE))
            found.append(("neurons", [f"{path}.intermediate.dense"], f"{path}.output.dense", 1))
    return found

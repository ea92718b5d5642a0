"""Models from a transformers config, with random weights: speed does not depend on their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lowrank.errors import LowRankError
from lowrank.models import register

Kind = Literal["encoder", "decoder"]

PRESETS: dict[str, tuple[Kind, dict[str, Any]]] = {
    "bert-base": (
        "encoder",
        {
            "model_type": "bert",
            "vocab_size": 30522,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 512,
        },
    ),
    "gpt2-small": (
        "decoder",
        {
            "model_type": "gpt2",
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
        },
    ),
}
"""Sizes as in Devlin et al. 2019 (arXiv 1810.04805) and Radford et al. 2019."""
AUTO_CLASS: dict[Kind, str] = {
    "encoder": "AutoModelForSequenceClassification",
    "decoder": "AutoModelForCausalLM",
}


def read_config(source: str, kind: Kind | None = None) -> tuple[Any, Kind]:
    """A transformers config, and whether it is of an encoder or of a decoder.

    Args:
        source: Name of a preset, or path of a config.json.
        kind: Needed for a file whose `architectures` do not say it.

    Raises:
        LowRankError: No such preset or file, or the kind is not known.
    """
    import transformers

    register()
    if source in PRESETS:
        known, values = PRESETS[source]
        fields = dict(values)
    else:
        fields = _read_file(source)
        known = kind or _kind_of(fields, source)
    if kind not in (None, known):
        raise LowRankError(f"{source} is of a {known}, got kind {kind!r}")
    try:
        return transformers.AutoConfig.for_model(fields.pop("model_type", ""), **fields), known
    except (ValueError, KeyError, TypeError) as error:
        raise LowRankError(f"{source} is no config of transformers: {error}") from error


def build(config: Any, kind: Kind, dtype: torch.dtype, seed: int = 0) -> Any:
    """A model with random weights, in evaluation mode, on the CPU."""
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, AUTO_CLASS[kind]).from_config(config)
    return model.to(dtype).eval()


def kind_of_auto_class(auto_class: object) -> Kind:
    """What a manifest's `auto_class` says of the model."""
    for kind, name in AUTO_CLASS.items():
        if name == auto_class:
            return kind
    raise LowRankError(f"auto_class must be one of {[*AUTO_CLASS.values()]}, got {auto_class!r}")


def _read_file(source: str) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        raise LowRankError(
            f"a config is one of {sorted(PRESETS)} or the path of a config.json, got {source!r}"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LowRankError(f"{path}: cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise LowRankError(f"{path}: must hold an object")
    # the sizes alone matter: weights are drawn anew and made small anew
    for key in ("quantization_config", "transformers_version"):
        fields.pop(key, None)
    return fields


def _kind_of(fields: dict[str, Any], source: str) -> Kind:
    for name in fields.get("architectures") or []:
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "decoder"
        if name.endswith(("ForSequenceClassification", "ForMaskedLM", "ForPreTraining")):
            return "encoder"
    raise LowRankError(
        f"{source}: its architectures do not say whether it is an {' or a '.join(get_args(Kind))}; "
        "give the kind"
    )

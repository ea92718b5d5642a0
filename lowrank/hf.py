"""Saving and loading transformers models with their configuration and tokenizer.

The folder holds config.json, the tokenizer's files, model.safetensors and lowrank.json. It is also
one that `from_pretrained` of transformers reads (`lowrank.auto`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.errors import ExportError, first_line
from lowrank.export import check_keys, load, save
from lowrank.forms import described_layers, restructured
from lowrank.linear import LowRankLinear
from lowrank.manifest import named_as_in_model, read_manifest
from lowrank.models import register
from lowrank.plain_json import read_json

_COUNT = re.compile(r"(layers?|labels|experts)$")
"""Fields of a config that say how many there are of something."""
AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForSeq2SeqLM",
)


def save_pretrained(
    model: nn.Module,
    folder: Path | str,
    auto_class: str,
    tokenizer: Any = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write a compacted transformers model so that `load_pretrained(folder)` brings it back.

    Args:
        model: A transformers model, without gates.
        folder: Created if needed.
        auto_class: Which Auto class builds it, one of `AUTO_CLASSES`.
        tokenizer: Saved beside it, if given.
        metadata: Kept in the manifest.
    """
    _check_auto_class(auto_class)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_config(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return save(model, folder, {"auto_class": auto_class, **(metadata or {})})


def load_pretrained(folder: Path | str) -> nn.Module:
    """Build the model from config.json and load structure and weights; evaluation mode.

    Raises:
        ExportError: Anything missing, unexpected or damaged.
    """
    import transformers

    register()
    folder = Path(folder)
    manifest = read_manifest(folder)
    auto_class = manifest["metadata"].get("auto_class")
    _check_auto_class(auto_class)
    model = load(_dense_model(folder, getattr(transformers, auto_class), manifest), folder).eval()
    if described_layers(model):
        from lowrank import auto

        auto.attach(model)
    return model


def _dense_model(folder: Path, auto: Any, manifest: dict[str, Any]) -> nn.Module:
    """What config.json describes, with any weights."""
    import transformers

    path = folder / "config.json"
    try:
        _check_counts(path, manifest)
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # the manifest says the same, and more
        config.__dict__.pop("quantization_config", None)
        # first without memory: a config may name sizes that no machine has
        with torch.device("meta"):
            empty = restructured(
                auto.from_config(config, trust_remote_code=False), manifest["layers"]
            )
        shapes = {name: shape for name, (_, shape) in manifest["tensors"].items()}
        check_keys(empty, named_as_in_model(folder, manifest, shapes))
        return auto.from_config(config, trust_remote_code=False)
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file") from None
    except ExportError:
        raise
    except Exception as error:  # transformers checks fields in many places, in its own ways
        raise ExportError(f"{path}: cannot be read: {first_line(error)}") from error


def _check_counts(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a config of a billion layers or labels: transformers would begin to make them."""
    sizes = [size for _, shape in manifest["tensors"].values() for size in shape]
    most = max([len(manifest["tensors"]), *sizes])
    config = read_json(path, finite=False)
    for field, value in config.items() if isinstance(config, dict) else ():
        if _COUNT.search(field) and isinstance(value, int) and value > most:
            raise ExportError(
                f"{path}: {field} <= {most} must hold, the number of tensors or the largest side "
                f"of one, got {value!r:.20}"
            )


def _save_config(model: Any, folder: Path) -> None:
    """config.json, with the small layers as `lowrank.auto` reads them."""
    from lowrank import auto

    model.config.__dict__.pop("quantization_config", None)
    model.config.architectures = [type(model).__name__]
    # from_pretrained goes by it, and a model may have been cast since its config was read
    model.config.dtype = model.dtype
    if described_layers(model):
        auto.attach(model)
    model.config.save_pretrained(folder)


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer saved beside the model.

    Raises:
        ExportError: It is damaged.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(Path(folder), trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises Exception itself
        raise ExportError(f"{folder}: its tokenizer cannot be read: {first_line(error)}") from error


def resize_token_embeddings(model: Any, num_tokens: int, **options: Any) -> nn.Module:
    """Change the vocabulary of a compacted model; new tokens are new rows of the first factor.

    `model.resize_token_embeddings` does it where the output projection is dense, or tied to the
    embedding. An output projection that was factorized on its own has two matrices, of which
    transformers is shown the one with a row per token.

    Args:
        model: A transformers model.
        num_tokens: Of the new vocabulary.
        options: As of transformers' method.

    Returns:
        The input embedding.
    """
    head = model.get_output_embeddings()
    if type(head) is not LowRankLinear:
        return model.resize_token_embeddings(num_tokens, **options)
    up = head.as_two_layers()[1]
    model.set_output_embeddings(up)
    try:
        embedding = model.resize_token_embeddings(num_tokens, **options)
        resized = model.get_output_embeddings()
        head.weight, head.out_features = resized.weight, resized.out_features
        head.register_parameter("bias", resized.bias)
    finally:
        model.set_output_embeddings(head)
    return embedding


def _check_auto_class(auto_class: object) -> None:
    if auto_class not in AUTO_CLASSES:
        raise ExportError(f"auto_class must be one of {AUTO_CLASSES}, got {auto_class!r}")

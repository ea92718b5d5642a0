"""Saving and loading transformers models with their configuration and tokenizer.

The folder holds config.json, the tokenizer's files, model.safetensors and lowrank.json. It is also
one that `from_pretrained` of transformers reads (`lowrank.auto`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lowrank.errors import ExportError
from lowrank.export import load, read_manifest, save
from lowrank.forms import described_layers
from lowrank.linear import LowRankLinear
from lowrank.models import register

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
    auto_class = read_manifest(folder)["metadata"].get("auto_class")
    _check_auto_class(auto_class)
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder / 'config.json'}: no such file")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder / 'config.json'}: cannot be read: {error}") from error
    # the manifest says the same, and more
    config.__dict__.pop("quantization_config", None)
    model = load(getattr(transformers, auto_class).from_config(config), folder).eval()
    if described_layers(model):
        from lowrank import auto

        auto.attach(model)
    return model


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
    """The tokenizer saved beside the model."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(Path(folder))


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

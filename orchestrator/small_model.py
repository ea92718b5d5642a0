"""The small model that a task could have trained instead of compressing a large one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from lowrank.prunable import prunable_shape
from lowrank.surgery import find_layers
from orchestrator.errors import ModelError

INNER_NAMES = ("n_inner", "intermediate_size", "hidden_dim", "ffn_dim", "ffn_hidden_size")
"""What families of transformers call the feed-forward width."""


def narrower_config(
    config: Any,
    auto: Any,
    density: float,
    include: Sequence[str],
    exclude: Sequence[str],
    embeddings: bool = False,
) -> Any:
    """A config of the same family and depth whose matrices hold a fraction of the parameters.

    The number of heads stays, so heads get narrower with the model. The feed-forward width first
    shrinks in proportion and then takes up what the budget has left.

    Args:
        config: transformers config of the dense model.
        auto: transformers Auto class that builds it.
        density: Fraction of the parameters of the matched matrices, 0 < density <= 1.
        include: Patterns of the layers that count.
        exclude: Patterns that win over `include`.
        embeddings: Whether the token embedding counts too.

    Raises:
        ModelError: Not even the narrowest model fits.
    """

    def prunable(candidate: Any) -> int:
        with torch.device("meta"):
            model = auto.from_config(candidate)
        layers = find_layers(model, include, exclude, embeddings).layers
        return sum(prunable_shape(layer).num_dense for layer in layers.values())

    allowed = density * prunable(config)
    # rotary embeddings turn pairs of dimensions
    step = 2 * config.num_attention_heads if hasattr(config, "num_attention_heads") else 8
    inner = _inner_size(config)
    for width in range(config.hidden_size - config.hidden_size % step, 0, -step):
        ratio = inner / config.hidden_size
        candidate = _resized(config, width, max(1, round(ratio * width)))
        if prunable(candidate) <= allowed:
            break
    else:
        raise ModelError(
            f"no {type(config).__name__} with hidden size {step} or more has at most a fraction "
            f"of {density} of the parameters"
        )
    # every column of the feed-forward layers costs the same
    size = _inner_size(candidate)
    column = prunable(_resized(config, width, size + 1)) - prunable(candidate)
    spare = allowed - prunable(candidate)
    return _resized(config, width, size + int(spare // column)) if column else candidate


def _inner_size(config: Any) -> int:
    """Feed-forward width; 0 for families without one."""
    name = _inner_name(config)
    return 0 if name is None else getattr(config, name) or 4 * config.hidden_size


def _inner_name(config: Any) -> str | None:
    return next((name for name in INNER_NAMES if hasattr(config, name)), None)


def _resized(config: Any, width: int, inner: int) -> Any:
    resized = copy.deepcopy(config)
    resized.hidden_size = width
    if (name := _inner_name(config)) is not None:
        setattr(resized, name, inner)
    if getattr(config, "head_dim", None) is not None:
        # in proportion, since it need not be that of the width; and even
        resized.head_dim = max(2, config.head_dim * width // config.hidden_size // 2 * 2)
    return resized

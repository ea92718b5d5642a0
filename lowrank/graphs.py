"""Compacted models as graphs of plain operations: what torch.export and ONNX have in common.

A graph takes token ids and masks of any batch and length, and gives logits. There is no cache of
keys and values: a decoder's graph computes a whole text at once. For generation take the factorized
form.
"""

from __future__ import annotations

import inspect
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import ExportError
from lowrank.models import CLUSTERED_TYPES, STATEFUL_TYPES

PROGRAM = "model.pt2"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a graph may take, in this order."""
TRACED_SHAPE = (2, 8)
"""Of the example that is traced. Not 1: torch.export takes a dimension of 1 for a constant."""


class Logits(nn.Module):
    """A transformers model as a function from tensors to logits.

    Args:
        model: In evaluation mode.
        names: Of its inputs, in the order in which they are given.
    """

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        # a cache that nobody reads would become an output of the graph
        self.options = {"use_cache": False} if "use_cache" in _arguments(model) else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        """[batch, length] each -> [batch, length, tokens], or [batch, classes]."""
        named = dict(zip(self.names, inputs, strict=True))
        logits: Tensor = self.model(**named, **self.options).logits
        return logits


def input_names(model: Any, tokenizer: Any = None) -> tuple[str, ...]:
    """Those of `INPUTS` that a model takes and its tokenizer makes; without a tokenizer ids and
    mask."""
    made = INPUTS[:2] if tokenizer is None else tokenizer.model_input_names
    return tuple(name for name in INPUTS if name in made and name in _arguments(model))


def example_inputs(
    model: Any, names: tuple[str, ...], batch: int, length: int, seed: int = 0
) -> dict[str, Tensor]:
    """Random token ids, with padding at the end of the second row, if there is one.

    Args:
        model: Says how many tokens there are, and which one is padding.
        names: Of the inputs.
        batch: Rows.
        length: Tokens in a row.
        seed: Of the draw.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    padding = getattr(config, "pad_token_id", None)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    if padding is not None:
        # padding within a text means its end to some heads
        ids[ids == padding] = (padding + 1) % config.vocab_size
    mask = torch.ones_like(ids)
    if batch > 1 and length > 1 and "attention_mask" in names:
        mask[1, length - length // 3 - 1 :] = 0
        ids[mask == 0] = padding or 0
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: made[name] for name in names}


def longest_input(model: Any) -> int:
    """Tokens that a model has positions for; some families count theirs from behind the padding's
    id. A large number for a model without a limit."""
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit = len(module.weight) - (-1 if module.padding_idx is None else module.padding_idx)
            return int(limit) - 1
    return int(limit)


def traceable(model: Any, names: tuple[str, ...]) -> tuple[Logits, tuple[Tensor, ...]]:
    """The function to trace, and the inputs to trace it with.

    Raises:
        ExportError: The architecture, or what pruning left of it, cannot become a graph.
    """
    kind = model.config.model_type
    if kind in STATEFUL_TYPES:
        raise ExportError(f"model type {kind!r} has no graph: it loops over the text in Python")
    if kind in CLUSTERED_TYPES:
        raise ExportError(f"model type {kind!r} has no graph: its shapes depend on the tokens")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ExportError(f"model type {kind!r} has no graph: encoder and decoder are two models")
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            raise ExportError(f"{name} is empty (rank 0), which a graph cannot hold")
    batch, length = TRACED_SHAPE
    inputs = example_inputs(model, names, batch, min(length, longest_input(model)))
    return Logits(model, names).eval(), tuple(inputs.values())


def save_program(model: Any, folder: Path | str, names: tuple[str, ...]) -> Path:
    """Write `model.pt2`, which `torch.export.load` reads without transformers or this package.

    The format may hold pickles; this file holds none: raw tensors and JSON.

    Args:
        model: A compacted transformers model on the CPU, in evaluation mode.
        folder: There already.
        names: Of the inputs, in order.

    Raises:
        ExportError: The model cannot be traced.
    """
    function, inputs = traceable(model, names)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with torch.no_grad():
            # not strict: transformers' own Python is not part of the graph
            program = torch.export.export(
                function, inputs, dynamic_shapes=((dynamic,) * len(inputs),), strict=False
            )
    except Exception as error:
        raise untraceable(model, error) from error
    program.example_inputs = None  # they would be pickled
    path = Path(folder) / PROGRAM
    torch.export.save(program, path)
    if pickled := pickled_parts(path):
        raise ExportError(f"{path}: holds pickles: {pickled[0]}")
    return path


def untraceable(model: Any, error: Exception) -> ExportError:
    """What to say when tracing failed."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ExportError(f"{type(model).__name__} cannot be traced: {type(error).__name__}: {first}")


def pickled_parts(path: Path | str) -> list[str]:
    """Names of what a .pt2 file stores as pickles."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for part in archive.namelist():
            if part.endswith((".pt", ".pkl")) or "custom_obj" in part:
                # an empty one stands for nothing
                found += [part] if archive.getinfo(part).file_size else []
            elif part.endswith("_config.json"):
                table = json.loads(archive.read(part)).get("config", {})
                found += [name for name, entry in table.items() if entry.get("use_pickle")]
    return found


def _arguments(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)

"""The pruner's part of a Trainer's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from lowrank.errors import ExportError
from lowrank.pruner import Pruner

STATE = "lowrank-pruner.safetensors"
"""In every checkpoint: the pruner's own state."""
GATED_TYPE = "lowrank-with-gates"
"""Model type in the config.json of a checkpoint with gates. No loader knows it: by its real type
the model would be loaded with random weights where the file has gated factors."""


def find(folder: Path) -> Path | None:
    """The folder, if it is a checkpoint, or the last one in it; None if there is none."""
    if (folder / "trainer_state.json").is_file():
        return folder
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return None if last is None else Path(last)


def write(pruner: Pruner, folder: Path) -> None:
    """Add the pruner to a checkpoint; one with gates is marked as no model."""
    save_file({name: t.contiguous() for name, t in pruner.state_dict().items()}, folder / STATE)
    path = folder / "config.json"
    if path.is_file() and not pruner.finished:
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"model_type": GATED_TYPE}, indent=2), "utf-8")


def read(folder: Path) -> dict[str, Tensor]:
    """The pruner's state.

    Raises:
        ExportError: It is missing or damaged.
    """
    path = folder / STATE
    if not path.is_file():
        raise ExportError(f"{path}: no such file; the checkpoint has no pruner in it")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path}: not a whole safetensors file: {error}") from error


def check_weights(model: Any, folder: Path) -> None:
    """Raise ExportError for tensors that the Trainer would pass over when it goes on: it loads what
    it finds, and transformers stores some models under other names, such as experts one by one."""
    stored: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            stored |= set(tensors.keys())
    state = model.state_dict(keep_vars=True)
    there = {id(state[name]) for name in stored if name in state}
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    missing = [n for n, tensor in state.items() if id(tensor) not in there and n not in ignored]
    if missing or stored - state.keys():
        unexpected = sorted(stored - state.keys())
        raise ExportError(
            f"{folder}: the Trainer cannot load the weights back: {len(missing)} missing, such "
            f"as {missing[:2]}, {len(unexpected)} unexpected, such as {unexpected[:2]}"
        )

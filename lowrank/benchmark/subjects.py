"""What is timed: a dense model and a compressed one of the same architecture."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.alignment import HARDWARE_MULTIPLE
from lowrank.benchmark.presets import Kind, build, kind_of_auto_class, read_config
from lowrank.counting import num_matrix_parameters, num_parameters
from lowrank.density import LayerShape, check_density
from lowrank.errors import LowRankError
from lowrank.forms import described_layers
from lowrank.hf import load_pretrained
from lowrank.linear import LowRankLinear, layer_shape
from lowrank.manifest import read_manifest
from lowrank.surgery import find_layers, replace_layers

HEADS = ("*classifier*", "*pooler*", "*lm_head*", "*score*")
"""Not factorized in a model from a config: they are small, or depend on the task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Both models, in evaluation mode, in the same dtype and on the same device."""

    name: str
    kind: Kind
    dense: Any
    compressed: Any
    folders: tuple[Path, Path] | None = None
    """Of the dense and the compressed export, if they come from such."""

    @property
    def layers(self) -> dict[str, LayerShape]:
        """The compressed layers, with the shapes of the matrices that they stand for."""
        return {
            name: LayerShape(layer["in_features"], layer["out_features"])
            for name, layer in described_layers(self.compressed).items()
            if not layer.get("tied_to")
        }

    def sizes(self) -> dict[str, Any]:
        """Parameters, counted in the models; JSON."""
        layers = self.layers
        total = sum(shape.num_dense for shape in layers.values())
        stored = num_matrix_parameters(self.compressed, [*layers])
        return {
            "dense_parameters": num_parameters(self.dense),
            "compressed_parameters": num_parameters(self.compressed),
            "compressed_layers": len(layers),
            "density_of_these": stored / total if total else 1.0,
        }


def from_folders(
    dense: Path | str, compressed: Path | str, dtype: torch.dtype | None = None
) -> Subject:
    """Two exports, as a campaign or `lowrank.hf.save_pretrained` writes them.

    Args:
        dense: Folder of the reference.
        compressed: Folder of what is compared with it.
        dtype: Of both models; by default that of the files.

    Raises:
        LowRankError: They are of different classes.
        ExportError: A folder is damaged.
    """
    folders = (Path(dense), Path(compressed))
    kinds = [kind_of_auto_class(read_manifest(f)["metadata"].get("auto_class")) for f in folders]
    models = [load_pretrained(folder) for folder in folders]
    classes = [type(model).__name__ for model in models]
    if classes[0] != classes[1]:
        raise LowRankError(f"both models must be of one class, got {classes[0]} and {classes[1]}")
    if dtype is not None:
        models = [model.to(dtype) for model in models]
    return Subject(
        name=folders[1].name,
        kind=kinds[0],
        dense=models[0],
        compressed=models[1],
        folders=folders,
    )


def from_config(
    source: str,
    density: float,
    *,
    kind: Kind | None = None,
    dtype: torch.dtype = torch.float32,
    rank_multiple: int = HARDWARE_MULTIPLE,
    seed: int = 0,
) -> Subject:
    """A model with random weights, and the same one with factors of one density everywhere.

    Args:
        source: A preset or the path of a config.json (`read_config`).
        density: Of the factorized matrices, 0 < density <= 1; ranks are rounded down to it.
        kind: As in `read_config`.
        dtype: Of both models.
        rank_multiple: Ranks are multiples of it where they are not smaller, >= 1.
        seed: Of the weights.
    """
    check_density(density)
    config, kind = read_config(source, kind)
    dense = build(config, kind, dtype, seed)
    return Subject(
        name=f"{source} at density {density:g}",
        kind=kind,
        dense=dense,
        compressed=with_random_factors(dense, density, rank_multiple),
    )


def with_random_factors(
    dense: nn.Module,
    density: float,
    rank_multiple: int = HARDWARE_MULTIPLE,
    exclude: Sequence[str] = HEADS,
) -> nn.Module:
    """A copy whose matrices are random factors: for timing, where an SVD would only cost time.

    Matrices stay dense where factors would not be smaller, and all of them at density 1.
    """
    model = copy.deepcopy(dense)
    layers = {id(m): m for m in find_layers(model, exclude=exclude).layers.values()}

    def make(_: str, module: nn.Module) -> nn.Module | None:
        if id(module) not in layers:
            return None
        shape = layer_shape(module)
        rank = uniform_rank(shape, density, rank_multiple)
        if density == 1 or rank > shape.break_even_rank:
            return None
        weight = next(module.parameters())
        factory: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        return LowRankLinear(
            shape.in_features, shape.out_features, rank, module.bias is not None, **factory
        )

    return replace_layers(model, make).eval()


def uniform_rank(shape: LayerShape, density: float, multiple: int = 1) -> int:
    """The largest rank whose factors cost at most the density, rounded down to a multiple where
    that leaves any; at least 1."""
    if multiple < 1:
        raise LowRankError(f"rank_multiple >= 1 must hold, got {multiple}")
    # the nudge is that of `lowrank.density.budget`
    rank = int(check_density(density) * shape.num_dense * (1 + 1e-12) / shape.num_per_component)
    return max(1, rank - rank % multiple if rank >= multiple else rank)

"""The small layers of a model as a manifest describes them, and empty ones made from that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank.embedding import LowRankEmbedding, LowRankHead, is_embedding
from lowrank.errors import ExportError, SurgeryError
from lowrank.linear import LowRankLinear, is_matrix_layer
from lowrank.narrow import full_shape, narrow_linear, set_head_counts
from lowrank.pivoted import PivotedLinear
from lowrank.prunable import prunable_shape
from lowrank.sliced import SlicedLinear
from lowrank.surgery import replace_layers

LAYER_SIZES = {
    "low-rank": ("rank",),
    "pivoted": ("rank",),
    "sliced": ("num_in", "num_out"),
    "narrow": ("num_in", "num_out"),
    "low-rank-embedding": ("rank",),
    "low-rank-head": ("rank",),
}
"""What besides width and bias tells how big a layer of each form is. The matrix of an embedding is
that of the output projection which may be tied to it, [tokens, width]: tokens go out, width in."""
LIMITS = {
    "rank": ("in_features", "out_features"),
    "num_in": ("in_features",),
    "num_out": ("out_features",),
}
"""What no size exceeds."""
HEAD_KEYS = ("tied_to", "zero_row")
"""Of a low-rank head: the embedding whose factors it uses, null for factors of its own; and its
token without gradient, or null."""
PIVOTED_KEY = "ordered"
"""Of a pivoted layer: whether it puts its outputs into their order."""
VANISHING = ("low-rank-embedding", "low-rank-head")
"""Forms that may have rank 0."""


def described_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """For every small layer of a model what a manifest says of it."""
    found: dict[str, dict[str, Any]] = {}
    names = {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, LowRankEmbedding)
    }
    for name, module in model.named_modules(remove_duplicate=False):
        layer = _described(module)
        if isinstance(module, LowRankHead):
            layer |= {"tied_to": names.get(id(module.weight)), "zero_row": module.zero_row}
        if layer:
            found[name] = layer
    return found


def _described(module: nn.Module) -> dict[str, Any]:
    """Form, widths and sizes of a small layer; nothing for another module."""
    bias: Tensor | None
    if isinstance(module, LowRankEmbedding):
        rows, width = module.num_embeddings, module.embedding_dim
        form: dict[str, Any] = {"form": "low-rank-embedding", "rank": module.rank}
        return form | {"in_features": width, "out_features": rows, "bias": False}
    if isinstance(module, nn.Linear) and (full := full_shape(module)) is not None:
        form = {"form": "narrow", "num_in": module.in_features, "num_out": module.out_features}
        widths = {"in_features": full.in_features, "out_features": full.out_features}
        return form | widths | {"bias": module.bias is not None}
    if isinstance(module, LowRankLinear):
        name = "low-rank-head" if isinstance(module, LowRankHead) else "low-rank"
        form = {"form": name, "rank": module.rank}
        bias = module.bias
    elif isinstance(module, PivotedLinear):
        form = {"form": "pivoted", "rank": module.rank, PIVOTED_KEY: module.order is not None}
        bias = module.bias
    elif isinstance(module, SlicedLinear):
        form = {"form": "sliced", "num_in": module.num_in, "num_out": module.num_out}
        bias = module.bias
    else:
        return {}
    width_of = {"in_features": module.in_features, "out_features": module.out_features}
    return form | width_of | {"bias": bias is not None}


def check_layer(place: str, layer: Any) -> None:
    """Raise ExportError, with the place, unless a layer is described in full."""
    if not isinstance(layer, dict) or layer.get("form") not in list(LAYER_SIZES):
        raise ExportError(f"{place}: must have a form, one of {sorted(LAYER_SIZES)}")
    sizes = LAYER_SIZES[layer["form"]]
    if not layer.keys() >= {"in_features", "out_features", "bias", *sizes}:
        wanted = sorted({"in_features", "out_features", "bias", *sizes})
        raise ExportError(f"{place} must have {wanted}")
    least = 0 if layer["form"] in VANISHING else 1
    for width in ("in_features", "out_features"):
        if type(layer[width]) is not int or layer[width] < 1:
            raise ExportError(f"{place}: {width} >= 1 must hold, got {layer[width]!r:.20}")
    if not isinstance(layer["bias"], bool):
        raise ExportError(f"{place}: bias must be true or false, got {layer['bias']!r:.20}")
    for size in sizes:
        # memory of this size is taken before the tensors are compared with it
        most = min(layer[width] for width in LIMITS[size])
        if type(layer[size]) is not int or not least <= layer[size] <= most:
            raise ExportError(
                f"{place}: {least} <= {size} <= {most} must hold, got {layer[size]!r:.20}"
            )
    if layer["form"] == "pivoted" and not isinstance(layer.get(PIVOTED_KEY), bool):
        raise ExportError(f"{place}: {PIVOTED_KEY} must be true or false")
    if layer["form"] == "low-rank-head":
        tied, row = (layer.get(key, ...) for key in HEAD_KEYS)
        if not isinstance(tied, str | None) or not (row is None or type(row) is int):
            raise ExportError(f"{place} must have {list(HEAD_KEYS)}: a name, a row, or null")


def restructured(model: nn.Module, layers: dict[str, dict[str, Any]]) -> nn.Module:
    """The model with empty small layers in place of the dense ones that are described.

    Raises:
        ExportError: The model has no such layer, or one of another size.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[int, nn.Module] = {}
    # heads last: they are made of their embeddings
    for name, layer in sorted(layers.items(), key=lambda item: item[1]["form"] == "low-rank-head"):
        module = modules.get(name)
        if module is None or not _may_become(module, layer["form"]):
            raise ExportError(f"layer {name!r} of the export does not exist in this model")
        shape = prunable_shape(module)
        wanted = (layer["in_features"], layer["out_features"])
        if (shape.in_features, shape.out_features) != wanted:
            raise ExportError(
                f"layer {name!r}: {wanted} features in the export, "
                f"{(shape.in_features, shape.out_features)} in this model"
            )
        if id(module) not in made:
            tied = made.get(id(modules.get(layer.get("tied_to") or "")))
            made[id(module)] = _empty(name, layer, module, tied)
    model = replace_layers(model, lambda _, module: made.get(id(module)))
    try:
        set_head_counts(model)
    except SurgeryError as error:
        raise ExportError(f"the export does not fit this model; {error}") from error
    return model


def check_indices(place: str, model: nn.Module) -> None:
    """Raise ExportError, with the place, for small layers whose stored indices cannot be: a shape
    says nothing about these."""
    for name, module in model.named_modules():
        if isinstance(module, SlicedLinear) and not module.indices_are_valid():
            raise ExportError(f"{place}: layer {name!r} keeps features that it does not have")
        if isinstance(module, PivotedLinear) and not module.order_is_valid():
            raise ExportError(f"{place}: layer {name!r}: each of its outputs must come once")


def _may_become(dense: nn.Module, form: str) -> bool:
    """Whether a module of a new model is one that a small layer of this form came from."""
    if form == "low-rank-embedding":
        return is_embedding(dense) or isinstance(dense, LowRankEmbedding)
    factored = form == "low-rank-head" and isinstance(dense, LowRankHead)
    return factored or is_matrix_layer(dense)


def _empty(name: str, layer: dict[str, Any], dense: nn.Module, tied: nn.Module | None) -> nn.Module:
    """The small layer that the manifest describes, in the place of a dense one."""
    widths = (layer["in_features"], layer["out_features"])
    sizes = {key: layer[key] for key in LAYER_SIZES[layer["form"]]}
    if layer["form"] == "low-rank-embedding":
        assert isinstance(dense, nn.Embedding)
        table = LowRankEmbedding(widths[1], widths[0], layer["rank"], dense.padding_idx)
        table.first_token = getattr(dense, "first_token", 0)
        return table
    if layer["form"] == "low-rank-head" and layer["tied_to"] is None:
        head = LowRankHead(*widths, layer["rank"], layer["bias"])
        head.first_token = getattr(dense, "first_token", 0)
        return head
    if layer["form"] == "low-rank-head":
        if not isinstance(tied, LowRankEmbedding) or tied.rank != layer["rank"]:
            raise ExportError(
                f"layer {name!r} is tied to {layer['tied_to']!r}, which is no low-rank embedding "
                f"of rank {layer['rank']}"
            )
        if dense.bias is not None and not layer["bias"]:
            raise ExportError(f"layer {name!r} has a bias in this model, and none in the export")
        # the model's own bias, which other modules may hold too
        bias = dense.bias
        if bias is None and layer["bias"]:
            bias = nn.Parameter(torch.empty(layer["out_features"]))
        assert bias is None or isinstance(bias, nn.Parameter)
        return LowRankHead.tied(tied, bias, layer["zero_row"])
    if layer["form"] == "narrow":
        return narrow_linear(*widths, bias=layer["bias"], **sizes)
    if layer["form"] == "pivoted":
        ordered = layer[PIVOTED_KEY]
        return PivotedLinear(*widths, layer["rank"], layer["bias"], ordered=ordered)
    small = LowRankLinear if layer["form"] == "low-rank" else SlicedLinear
    return small(*widths, bias=layer["bias"], **sizes)

"""Layers of fewer heads or feed-forward neurons: gated while pruned, really narrower afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank.blocks import FORMS, BlockForm, UnitShape, form_of, unit_size
from lowrank.density import LayerShape
from lowrank.errors import SurgeryError
from lowrank.gate import Gate
from lowrank.linear import dense_weight, layer_shape
from lowrank.sliced import GatedInputLinear

_FULL_SHAPE = "full_shape"


def narrow_linear(
    in_features: int,
    out_features: int,
    num_in: int,
    num_out: int,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """An nn.Linear, not initialized, of fewer features than its model's configuration gives it.

    The layers around it are narrower too: unlike `SlicedLinear` it has no index, and no bias of
    dropped outputs. It is a plain nn.Linear, by type too, for whoever treats these in a special
    way; that it is narrower is noted on it, for the export.

    Args:
        in_features: Input features in the configuration.
        out_features: Output features in the configuration.
        num_in: Input features that it has.
        num_out: Output features that it has.
        bias: Of the `num_out` features.
        device: torch's default by default.
        dtype: torch's default by default.
    """
    # on the meta device, so that no initialization is drawn from the global generator
    layer = nn.Linear(num_in, num_out, bias=bias, device="meta", dtype=dtype)
    setattr(layer, _FULL_SHAPE, LayerShape(in_features, out_features))
    return layer.to_empty(device=device or torch.get_default_device())


def full_shape(module: nn.Module) -> LayerShape | None:
    """Of a layer that is narrower than its model's configuration: the shape given there."""
    return getattr(module, _FULL_SHAPE, None) if type(module) is nn.Linear else None


def narrowed(
    layer: nn.Module, keep_in: Tensor | None = None, keep_out: Tensor | None = None
) -> nn.Linear:
    """A dense layer without the features that are not kept; the layer itself stays as it is.

    Args:
        layer: nn.Linear or Conv1D.
        keep_in: Bool [in_features]; None keeps all.
        keep_out: Bool [out_features]; None keeps all.
    """
    weight, bias = dense_weight(layer).detach(), layer.bias
    full = full_shape(layer) or layer_shape(layer)
    if keep_in is not None:
        weight = weight[:, keep_in]
    if keep_out is not None:
        weight = weight[keep_out]
    num_out, num_in = weight.shape
    small = narrow_linear(
        full.in_features,
        full.out_features,
        num_in,
        num_out,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        small.weight.copy_(weight)
        if bias is not None:
            assert isinstance(bias, Tensor)
            small.bias.copy_(bias if keep_out is None else bias[keep_out])
    return small.train(layer.training)


class GatedUnits(GatedInputLinear):
    """y = W diag(z) x + b with one gate per head or neuron: what stands for a group's consumer.

    A gate on a consumer's input features is a gate on the unit's output: on the head before the
    output projection (Michel et al. 2019, arXiv 1905.10650), on the neuron after its activation
    (Xia et al. 2022, arXiv 2204.00408, section 3.1).

    Args:
        dense: The consumer.
        gate: One gate per unit, not yet trained.
        shape: Of the consumer and its units.
        producers: Names of the layers that compute the units' features.
        stacked: Matrices stacked in each of them.
    """

    shape: UnitShape

    def __init__(
        self,
        dense: nn.Module,
        gate: Gate,
        shape: UnitShape,
        producers: tuple[str, ...],
        stacked: int = 1,
    ) -> None:
        super().__init__(dense, gate, shape.unit_size)
        self.shape, self.producers, self.stacked = shape, producers, stacked

    def compact(self, keep: Tensor) -> nn.Module:
        """The consumer with the kept units' columns, gates folded in."""
        dense = self.to_dense(self.gated_weight())
        if bool(keep.all()):
            return dense
        return narrowed(dense, keep_in=keep.repeat_interleave(self.unit_size))

    def compact_producer(self, producer: nn.Module, keep: Tensor) -> nn.Module:
        """A producer with the kept units' rows."""
        if bool(keep.all()):
            return producer
        rows = keep.repeat_interleave(self.unit_size).repeat(self.stacked)
        return narrowed(producer, keep_out=rows)


def set_head_counts(model: nn.Module) -> None:
    """Make attention modules say how many heads their narrower matrices have.

    Raises:
        SurgeryError: A layer is narrower than the others of its block, or is in no known block.
    """
    names = {id(m): name for name, m in model.named_modules() if full_shape(m) is not None}
    for path, module in model.named_modules():
        form = form_of(module) if names else None
        if form is None:
            continue
        members = [module.get_submodule(p) for p in (*form.producers, form.consumer)]
        narrow = [m for m in members if isinstance(m, nn.Linear) and id(m) in names]
        if not narrow:
            continue
        if len(narrow) < len(members):
            raise SurgeryError(f"{path}: its matrices must be narrower together, got {members}")
        _set_heads(path, module, form, narrow)
        for member in narrow:
            names.pop(id(member), None)
    if names:
        raise SurgeryError(
            f"layer {next(iter(names.values()))!r} is narrower than the configuration says, which "
            f"is possible in {', '.join(FORMS)}"
        )


def _set_heads(path: str, module: nn.Module, form: BlockForm, members: list[nn.Linear]) -> None:
    *producers, consumer = members
    width = consumer.in_features
    size = unit_size(path, module, form, [p.out_features for p in producers], width)
    if form.heads is not None:
        owner = module.get_submodule(form.heads.owner)
        setattr(owner, form.heads.count, width // size)
        if form.heads.total is not None:
            setattr(owner, form.heads.total, width)

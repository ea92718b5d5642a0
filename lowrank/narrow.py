"""Layers of fewer heads or feed-forward neurons: gated while pruned, really narrower afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank.blocks import FORMS, BlockForm, UnitShape, form_of, unit_size
from lowrank.errors import SurgeryError
from lowrank.gate import Gate
from lowrank.linear import dense_weight, layer_shape
from lowrank.sliced import GatedInputLinear


class NarrowLinear(nn.Linear):
    """A dense layer of fewer features than its model's configuration gives it.

    The layers around it are narrower too: unlike `SlicedLinear` it has no index, and no bias of
    dropped outputs.

    Args:
        full_in: Input features in the configuration.
        full_out: Output features in the configuration.
        num_in: Input features, 1 <= num_in <= full_in.
        num_out: Output features, 1 <= num_out <= full_out.
        bias: Of the `num_out` features.
    """

    def __init__(
        self,
        full_in: int,
        full_out: int,
        num_in: int,
        num_out: int,
        bias: bool = True,
        **factory: Any,
    ) -> None:
        # on the meta device, so that no initialization is drawn from the global generator
        device = factory.pop("device", None) or torch.get_default_device()
        super().__init__(num_in, num_out, bias=bias, device="meta", **factory)
        self.full_in, self.full_out = full_in, full_out
        self.to_empty(device=device)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, full_in={self.full_in}, full_out={self.full_out}"


def narrowed(
    layer: nn.Module, keep_in: Tensor | None = None, keep_out: Tensor | None = None
) -> NarrowLinear:
    """A dense layer without the features that are not kept; the layer itself stays as it is.

    Args:
        layer: nn.Linear or Conv1D.
        keep_in: Bool [in_features]; None keeps all.
        keep_out: Bool [out_features]; None keeps all.
    """
    weight, bias = dense_weight(layer).detach(), layer.bias
    full = layer_shape(layer)
    if keep_in is not None:
        weight = weight[:, keep_in]
    if keep_out is not None:
        weight = weight[keep_out]
    num_out, num_in = weight.shape
    small = NarrowLinear(
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
    names = {id(m): name for name, m in model.named_modules() if isinstance(m, NarrowLinear)}
    for path, module in model.named_modules():
        form = form_of(module) if names else None
        if form is None:
            continue
        members = [module.get_submodule(p) for p in (*form.producers, form.consumer)]
        narrow = [member for member in members if isinstance(member, NarrowLinear)]
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


def _set_heads(path: str, module: nn.Module, form: BlockForm, members: list[NarrowLinear]) -> None:
    *producers, consumer = members
    width = consumer.in_features
    size = unit_size(path, module, form, [p.out_features for p in producers], width)
    if form.heads is not None:
        owner = module.get_submodule(form.heads.owner)
        setattr(owner, form.heads.count, width // size)
        if form.heads.total is not None:
            setattr(owner, form.heads.total, width)

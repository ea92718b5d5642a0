"""The folded form: every factorized layer multiplied out, a plain transformers folder.

It loads wherever transformers is installed, and for that gives up what the factors gained: on disk,
in memory and in time it is the dense model again. What is kept are the compressed model's answers.

Features that were removed come back as zeros. Heads and neurons that were removed come back as ones
that nothing reads: those that are left move to the front, which changes nothing, for the heads of
an attention block and the neurons of a feed-forward block have no order.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.blocks import form_of
from lowrank.embedding import LowRankEmbedding
from lowrank.errors import ExportError
from lowrank.linear import LowRankLinear, is_conv1d
from lowrank.models import CLUSTERED_TYPES, STATEFUL_TYPES
from lowrank.narrow import full_shape
from lowrank.pivoted import PivotedLinear
from lowrank.sliced import SlicedLinear


def folded(model: Any) -> Any:
    """The dense transformers model that computes what a compacted one does.

    Products are made in float64 and then take the dtype of their factors.

    Args:
        model: A transformers model without gates, on any device.

    Returns:
        A model of the same class, on the CPU, in evaluation mode; tied parameters are tied.

    Raises:
        ExportError: The architecture is one of ours, or a layer cannot be made dense.
    """
    kind = model.config.model_type
    if kind in (*STATEFUL_TYPES, *CLUSTERED_TYPES):
        raise ExportError(f"model type {kind!r} is no part of transformers: it has no folded form")
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    with torch.random.fork_rng(devices=[]):
        dense = type(model)(config).eval()
    state = _dense_state(model, dense)
    _check(dense, state)
    for name, tensor in (*dense.named_parameters(), *dense.named_buffers()):
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    dense.load_state_dict(state, strict=True)
    if getattr(model, "generation_config", None) is not None:
        dense.generation_config = copy.deepcopy(model.generation_config)
    return dense


def save_folded(model: Any, folder: Path | str, tokenizer: Any = None) -> Path:
    """Write the folded form of a compacted model: config.json, model.safetensors, tokenizer.

    Args:
        model: A transformers model without gates.
        folder: Created if needed.
        tokenizer: Saved beside it, if given.
    """
    folder = Path(folder)
    dense = folded(model)
    dense.config.architectures = [type(dense).__name__]
    # one file, whatever the size: the contract is about one
    dense.save_pretrained(folder, max_shard_size=10**15)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def multiply_out_(dense: nn.Module, small: nn.Module) -> nn.Module:
    """Give a dense model the weights of a small one of it, and so let it compute the same.

    Products are made in float64 and then take the dtype of their factors. What has two factors in
    the dense model as well (the tables of an adaptive embedding) gets zeros for the components that
    are gone.

    Args:
        dense: Receives them.
        small: The same model, some of its linear layers and embeddings having two factors.

    Returns:
        The dense model.
    """
    state = small.state_dict()
    for name, layer in small.named_modules(remove_duplicate=False):
        if not isinstance(layer, LowRankLinear | LowRankEmbedding):
            continue
        up, down = f"{name}.weight", f"{name}.projection"
        place = dense.get_submodule(name)
        if isinstance(place, LowRankLinear | LowRankEmbedding):
            missing = place.rank - layer.rank
            state[up] = nn.functional.pad(state[up], (0, missing))
            state[down] = nn.functional.pad(state[down], (0, 0, 0, missing))
            continue
        del state[down]
        weight = _full_weight(layer, 1)
        assert weight is not None
        state[up] = weight.t() if is_conv1d(place) else weight
    dense.load_state_dict(state)
    return dense


def _dense_state(model: nn.Module, dense: nn.Module) -> dict[str, Tensor]:
    """The state that the dense model takes, tensors of small layers in full size."""
    wanted = dict(dense.named_modules(remove_duplicate=False))
    stacks = _stacks(model)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = _full_weight(module, stacks.get(name, 1))
        if weight is None:
            continue
        if is_conv1d(wanted[name]):
            weight = weight.t()
        for factor in ("projection", "kept_in", "kept_out", "order"):
            state.pop(f"{name}.{factor}", None)
        state[f"{name}.weight"] = weight.cpu().contiguous()
        if isinstance(module, PivotedLinear) and (shift := module.dense()[1]) is not None:
            state[f"{name}.bias"] = shift.cpu()
        full = full_shape(module)
        bias = getattr(module, "bias", None)
        if full is not None and bias is not None:
            state[f"{name}.bias"] = _widened(bias.detach(), full.out_features, stacks.get(name, 1))
    return state


def _full_weight(module: nn.Module, stacked: int) -> Tensor | None:
    """[out_features, in_features] of a small layer, [tokens, width] of an embedding; or None."""
    if isinstance(module, LowRankLinear | LowRankEmbedding):
        product = module.weight.detach().double() @ module.projection.detach().double()
        return product.to(module.weight.dtype)
    if isinstance(module, PivotedLinear):
        return module.dense()[0]
    if isinstance(module, SlicedLinear):
        full = module.weight.detach().new_zeros(module.out_features, module.num_in)
        rows = slice(None) if module.kept_out is None else module.kept_out.long()
        full[rows] = module.weight.detach()
        if module.kept_in is None:
            return full
        wide = full.new_zeros(module.out_features, module.in_features)
        wide[:, module.kept_in.long()] = full
        return wide
    shape = full_shape(module)
    if shape is None:
        return None
    assert isinstance(module.weight, Tensor)
    rows_first = _widened(module.weight.detach(), shape.out_features, stacked)
    return _widened(rows_first.t(), shape.in_features, 1).t()


def _widened(tensor: Tensor, size: int, stacked: int) -> Tensor:
    """Zeros behind the entries of the first dimension, in each of the matrices stacked there."""
    parts = tensor.unflatten(0, (stacked, -1))
    full = parts.new_zeros(stacked, size // stacked, *parts.shape[2:])
    full[:, : parts.shape[1]] = parts
    return full.flatten(0, 1).cpu()


def _stacks(model: nn.Module) -> dict[str, int]:
    """How many matrices are stacked in the narrow producers of each known block."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        form = form_of(module)
        if form is not None:
            found |= {f"{path}.{producer}": form.stacked for producer in form.producers}
    return found


def _check(dense: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise ExportError unless the state is the dense model's, with its ties."""
    own = dense.state_dict()
    for name in (*own, *state):
        if name not in own or name not in state or own[name].shape != state[name].shape:
            raise ExportError(f"no folded form: {name} is not the same tensor in the dense model")
    groups: dict[int, list[str]] = {}
    for name, parameter in dense.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for first, *others in groups.values():
        for other in others:
            if not torch.equal(state[first], state[other]):
                raise ExportError(
                    f"no folded form: {other} is tied to {first} in the dense model, not in this"
                )

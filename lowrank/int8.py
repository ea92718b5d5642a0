"""Dynamic quantization of a model's linear layers to 8-bit integers, to set beside pruning.

Weights are stored as integers, one scale per output feature; activations are quantized on the way
in, batch by batch, and sums are made in integers. It needs no data and no training, and runs on
CPUs only. What other layers hold (embeddings, norms, Conv1D, pruned features) stays as it is.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from lowrank.errors import LowRankError
from lowrank.linear import LowRankLinear
from lowrank.surgery import replace_layers

SCALE_BYTES = 8
"""Per output feature: a scale in float32 and a zero point in int32."""


def available() -> bool:
    """Whether this build of torch has kernels for 8-bit integers."""
    return torch.backends.quantized.engine != "none"


def quantize_int8(model: nn.Module) -> nn.Module:
    """A copy of a model with every nn.Linear in 8-bit integers, in evaluation mode.

    torch's `quantize_dynamic`, with one scale per output feature and not per matrix: rank-1
    components differ in size by orders of magnitude, and the smaller ones would vanish.

    Args:
        model: On the CPU, without gates.

    Raises:
        LowRankError: The model is elsewhere, has no nn.Linear, or this torch has no kernels.
    """
    if any(tensor.device.type != "cpu" for tensor in model.parameters()):
        raise LowRankError("dynamic quantization runs on the CPU only, the model is elsewhere")
    if not available():
        raise LowRankError("this build of torch has no kernels for 8-bit integers")
    with warnings.catch_warnings():
        # deprecated in favour of torchao, which is no requirement of ours
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_", UserWarning)
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        linear = {nn.Linear: per_channel_dynamic_qconfig}
        quantized = quantize_dynamic(_with_plain_layers(model).eval(), linear, inplace=True)
    if not _weights(quantized):
        raise LowRankError("the model has no nn.Linear to quantize")
    return quantized


def _with_plain_layers(model: nn.Module) -> nn.Module:
    """A copy whose low-rank layers are two nn.Linear each, which is what torch quantizes."""
    return replace_layers(
        copy.deepcopy(model),
        lambda _, module: module.as_two_layers() if type(module) is LowRankLinear else None,
    )


def num_int8_bytes(quantized: nn.Module) -> int:
    """What a file of a quantized model would hold: a byte per quantized weight, `SCALE_BYTES` per
    output feature, all other tensors as they are, tied ones once."""
    tensors = {id(t): t for t in (*quantized.parameters(), *_persistent_buffers(quantized))}
    total = sum(tensor.nbytes for tensor in tensors.values())
    for weight, bias in _weights(quantized):
        total += weight.numel() + SCALE_BYTES * len(weight)
        total += 0 if bias is None else bias.nbytes
    return total


def _weights(quantized: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
    from torch.ao.nn.quantized.dynamic import Linear

    return [m._packed_params._weight_bias() for m in quantized.modules() if isinstance(m, Linear)]


def _persistent_buffers(model: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]

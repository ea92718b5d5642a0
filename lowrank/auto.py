"""Compacted models through transformers' own `from_pretrained`, without code from the folder.

    import lowrank.auto                                   # once, for the registration

    model = AutoModelForCausalLM.from_pretrained(folder)  # as written by lowrank.hf.save_pretrained

The folder's config.json says in `quantization_config` which layers have factors, and of what size;
that is the hook that transformers has for models whose layers are not those of their class. The
small layers take the place of the dense ones before any weight is read, while the model has no
memory: a full-size matrix is never allocated.

Where this package is missing, transformers prints that the quantization type `lowrank-orchestrator`
is unknown and stops, because in the file a factor stands under the name of the matrix, in another
shape.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowrank.errors import ExportError
from lowrank.export import is_finite
from lowrank.forms import check_indices, check_layer, described_layers, restructured
from lowrank.models import register

METHOD = "lowrank-orchestrator"
"""Name of the package that a reader of config.json has to install."""


class CompactedConfig(QuantizationConfigMixin):
    """Which layers of a model are small, as `quantization_config` of its config.

    Args:
        layers: As in the manifest, by the layers' names.
        quant_method: Always `METHOD`.

    Raises:
        ExportError: A layer is not described in full.
    """

    def __init__(self, layers: dict[str, dict[str, Any]], quant_method: str = METHOD) -> None:
        if not isinstance(layers, dict):
            raise ExportError(f"quantization_config: layers must be a table, got {layers!r}")
        for name, layer in layers.items():
            check_layer(f"quantization_config: layer {name!r}", layer)
        self.quant_method = quant_method
        self.layers = layers
        self._model: weakref.ref[nn.Module] | None = None

    def follow(self, model: nn.Module) -> None:
        """Describe this model from now on, whatever happens to it (a vocabulary may grow)."""
        self._model = weakref.ref(model)

    def to_dict(self) -> dict[str, Any]:
        model = None if self._model is None else self._model()
        layers = described_layers(model) if model is not None else self.layers
        return {"quant_method": self.quant_method, "layers": layers}


class CompactedQuantizer(HfQuantizer):
    """Puts small layers into the empty model before its weights are read."""

    quantization_config: CompactedConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise ExportError(
                "quantization_config describes a model that is compacted already; to compact one, "
                "use lowrank.Pruner"
            )

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        layers = _present(model, self.quantization_config.layers)
        with torch.device("meta"):
            restructured(model, layers)
        _tie(model, layers)
        if checkpoint_files:
            _check_files(model, layers, checkpoint_files)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        broken = [
            n for n, p in model.named_parameters() if p.device.type != "meta" and not is_finite(p)
        ]
        if broken:
            raise ExportError(f"{broken[0]} holds NaN or infinity")
        check_indices("the export", model)
        attach(model, self)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def attach(model: Any, quantizer: CompactedQuantizer | None = None) -> None:
    """Let a compacted transformers model describe its small layers when it is saved.

    Args:
        model: Without gates.
        quantizer: That loaded it; a new one by default.
    """
    layers = described_layers(model)
    quantizer = quantizer or CompactedQuantizer(CompactedConfig(layers))
    _tie(model, layers)
    quantizer.quantization_config.follow(model)
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config
    # no number was quantized: casts and training are as with any model
    model.is_quantized = False
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_is_quantized"):
            module.config._is_quantized = False


def _present(model: Any, layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The layers by their names in this model: a body without its head, or the other way round."""
    prefix = f"{model.base_model_prefix}."
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    is_body = model.base_model_prefix not in names

    def here(name: str) -> str:
        spellings = (name, prefix + name, name.removeprefix(prefix))
        return next((each for each in spellings if each in names), name)

    found = {here(name): layer for name, layer in layers.items()}
    if is_body:
        # a body has no use for what belongs to the head
        found = {name: layer for name, layer in found.items() if name in names}
    return {
        name: layer | {"tied_to": here(layer["tied_to"])} if layer.get("tied_to") else layer
        for name, layer in found.items()
    }


def _tie(model: Any, layers: dict[str, dict[str, Any]]) -> None:
    """transformers ties the `weight` of head and embedding; here they share both factors."""
    tied = {
        f"{name}.{factor}": f"{layer['tied_to']}.{factor}"
        for name, layer in layers.items()
        if layer.get("tied_to")
        for factor in ("weight", "projection")
    }
    model.all_tied_weights_keys |= tied
    # of this object, not of its class
    model._tied_weights_keys = dict(model._tied_weights_keys or {}) | tied


def _check_files(model: Any, layers: dict[str, dict[str, Any]], files: list[str]) -> None:
    """Raise ExportError for factors that are missing or of another shape: transformers would fill
    in random numbers for the first."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        if Path(file).suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    shapes[name] = tensors.get_slice(name).get_shape()
    if not shapes:
        raise ExportError("a compacted model is read from safetensors files")
    prefix = f"{model.base_model_prefix}."
    tied = model.all_tied_weights_keys
    absent: list[str] = []
    whole = type(model).__name__ in (getattr(model.config, "architectures", None) or [])
    for name, tensor in model.state_dict().items():
        owner = name.rpartition(".")[0]
        if name in tied or not (whole or owner in layers):
            continue
        spellings = (name, prefix + name, name.removeprefix(prefix))
        stored = next((shapes[key] for key in spellings if key in shapes), None)
        if stored is None:
            absent.append(name)
        elif list(tensor.shape) != list(stored):
            raise ExportError(f"{name} has shape {stored}, the config says {list(tensor.shape)}")
    missing = sorted(set(absent) - _converted(model, shapes)) if absent else []
    if missing:
        raise ExportError(f"{missing[0]} is missing in {Path(files[0]).name}")


def _converted(model: Any, stored: Iterable[str]) -> set[str]:
    """Names that transformers gives to tensors that are stored under other ones, such as those of
    single experts, which it stacks."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    return {rename_source_key(name, renamings, converters)[0] for name in stored} - set(stored)


if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(METHOD)(CompactedConfig)
    register_quantizer(METHOD)(CompactedQuantizer)
register()

"""Looking into a model while it runs: what its layers are given, and nothing changed after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every submodule has the mode it had."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def watching(
    layers: Mapping[str, nn.Module], on_input: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `on_input(name, x)` whenever a layer is run within the block.

    Args:
        layers: To watch, by name.
        on_input: Receives the layer's first argument, [*batch, in_features].
    """
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            on_input(name, args[0] if args else next(iter(kwargs.values())))

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    try:
        for name, layer in layers.items():
            watch(name, layer)
        yield
    finally:
        for handle in handles:
            handle.remove()

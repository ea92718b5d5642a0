"""Finding layers by name and replacing them, in any torch module.

Handles nested and shared modules (one layer under several names stays one layer) and the module
itself being the layer. A matrix whose parameter another module uses too, such as an output
projection tied to the embedding, is not touched: factorizing it would untie them in silence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lowrank.errors import SurgeryError
from lowrank.linear import is_matrix_layer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Match:
    """Layers that patterns selected."""

    layers: dict[str, nn.Module]
    """First name of each layer -> the layer, in module order. The root's name is ''."""
    tied: list[str]
    """Selected by name, left alone because their weight is shared."""


def find_layers(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> Match:
    """Select matrix layers (nn.Linear, transformers' Conv1D) by shell patterns on their names.

    Args:
        model: Any module.
        include: Patterns such as `encoder.*`, matched against the whole qualified name; a name
            is also tried with its aliases where modules are shared.
        exclude: Patterns that win over `include`.

    Raises:
        SurgeryError: A pattern of `include` matches no layer, or nothing is left after `exclude`.
            The message lists what could have matched.
    """
    candidates = _matrix_layers(model)
    for pattern in include:
        if not any(_matches(names, [pattern]) for names, _ in candidates.values()):
            raise SurgeryError(f"pattern {pattern!r} matches no layer; {_choices(candidates)}")
    shared = _shared_parameters(model)
    layers: dict[str, nn.Module] = {}
    tied: list[str] = []
    for names, module in candidates.values():
        if not _matches(names, include) or _matches(names, exclude):
            continue
        if id(module.weight) in shared:
            tied.append(names[0])
        else:
            layers[names[0]] = module
    if tied:
        logger.warning("left alone, their weight is tied to another module: %s", ", ".join(tied))
    if not layers:
        raise SurgeryError(
            f"include {list(include)} and exclude {list(exclude)} leave no layer; "
            + _choices(candidates)
        )
    return Match(layers, tied)


def replace_layers(
    model: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]
) -> nn.Module:
    """Replace modules under every name they have.

    Args:
        model: Changed in place, unless it is replaced itself.
        make: Called once per distinct module with its first name; returns the replacement, or
            None to keep the module and look inside it.

    Returns:
        The model, or its replacement.
    """
    made: dict[int, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> nn.Module:
        if id(module) not in made:
            replacement = make(name, module)
            made[id(module)] = module if replacement is None else replacement
            if replacement is None:
                # not named_children(): that hides a child which the parent holds under two names
                for child_name, child in list(module._modules.items()):
                    if child is not None:
                        path = f"{name}.{child_name}" if name else child_name
                        module._modules[child_name] = visit(path, child)
        return made[id(module)]

    return visit("", model)


def _matrix_layers(model: nn.Module) -> dict[int, tuple[list[str], nn.Module]]:
    found: dict[int, tuple[list[str], nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_matrix_layer(module):
            found.setdefault(id(module), ([], module))[0].append(name)
    return found


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _shared_parameters(model: nn.Module) -> set[int]:
    """Identities of parameters that more than one module holds."""
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))
    return {parameter for parameter, modules in owners.items() if len(modules) > 1}


def _choices(candidates: dict[int, tuple[list[str], nn.Module]], most: int = 40) -> str:
    names = [names[0] or "'' (the model itself)" for names, _ in candidates.values()]
    if not names:
        return "the model has no nn.Linear or Conv1D layer"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "layers that can be matched: " + ", ".join(names[:most]) + more

"""Finding layers by name and replacing them, in any torch module.

Handles nested and shared modules (one layer under several names stays one layer) and the module
itself being the layer. A matrix whose parameter another module uses too, such as an output
projection tied to the embedding, is not touched: factorizing it would untie them in silence. Unless
embeddings are asked for: then the embedding and what is tied to it are one layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from lowrank.embedding import LowRankEmbedding, LowRankHead, is_embedding
from lowrank.errors import SurgeryError
from lowrank.gated_embedding import GatedHead
from lowrank.linear import LowRankLinear, is_matrix_layer
from lowrank.pivoted import PivotedLinear
from lowrank.pruned import PrunedLayer
from lowrank.sliced import SlicedLinear

logger = logging.getLogger(__name__)

OWN = LowRankLinear | PivotedLinear | SlicedLinear | PrunedLayer | GatedHead
"""What this package puts in the place of layers."""
LEAST_SIDE = 8
"""Of a parameter that is worth a word when it is left alone: a router over four experts is not."""


@dataclass(frozen=True, slots=True)
class Match:
    """Layers that patterns selected."""

    layers: dict[str, nn.Module]
    """First name of each layer -> the layer, in module order. The root's name is ''."""
    tied: list[str]
    """Selected by name, left alone because their weight is shared."""
    heads: dict[str, list[nn.Module]] = field(default_factory=dict)
    """For every selected embedding the output projections that are tied to it, often none; and
    nothing for a selected `LowRankHead`."""
    refused: dict[str, str] = field(default_factory=dict)
    """Modules with matrices that patterns selected and that cannot be factorized -> why not."""

    @property
    def multiplying(self) -> dict[str, nn.Module]:
        """Per layer the module that rows are multiplied in, which for an embedding is its head; an
        embedding without one is not among them."""
        found: dict[str, nn.Module] = {}
        for name, module in self.layers.items():
            looked_up = isinstance(module, nn.Embedding)
            for used in self.heads.get(name, [])[:1] if looked_up else [module]:
                found[name] = used
        return found

    @property
    def tables(self) -> dict[str, nn.Module]:
        """Those of the layers whose rows are tokens."""
        return {name: self.layers[name] for name in self.heads}

    @property
    def embeddings(self) -> dict[str, nn.Module]:
        """Those of the tables that are looked up."""
        return {n: table for n, table in self.tables.items() if isinstance(table, nn.Embedding)}


def find_layers(
    model: nn.Module,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
) -> Match:
    """Select matrix layers (nn.Linear, transformers' Conv1D) by shell patterns on their names.

    An embedding is selected by its own name, whatever its head is called: the two are one layer.

    Args:
        model: Any module.
        include: Patterns such as `encoder.*`, matched against the whole qualified name; a name
            is also tried with its aliases where modules are shared.
        exclude: Patterns that win over `include`.
        embeddings: Select embeddings too. Of a model that says what its input embedding is (all of
            transformers do) only that one: tables of positions and token types are about 1 % of
            it. An embedding that shares its weight with anything but nn.Linear layers is left
            alone.

    Raises:
        SurgeryError: A pattern of `include` matches no layer, or nothing is left after `exclude`,
            or no embedding although they are asked for. The message lists what could have matched,
            and why what did match is refused.
    """
    heads = _embeddings(model) if embeddings else {}
    candidates = _candidates(model, heads)
    refused = _refused(model)
    for pattern in include:
        if not any(_matches(names, [pattern]) for names, _ in candidates.values()):
            found = {n: why for n, why in refused.items() if fnmatchcase(n, pattern)}
            raise SurgeryError(
                f"pattern {pattern!r} matches no layer{_reasons(found)}; " + _choices(candidates)
            )
    users = _users(model)
    layers: dict[str, nn.Module] = {}
    tied: dict[str, nn.Module] = {}
    for key, (names, module) in candidates.items():
        if not _matches(names, include) or _matches(names, exclude):
            continue
        alone = key in heads or len(users[id(module.weight)]) == 1
        (layers if alone else tied)[names[0]] = module
    selected = {name: heads[id(module)] for name, module in layers.items() if id(module) in heads}
    if embeddings and not selected:
        names = [candidates[key][0][0] for key in heads]
        raise SurgeryError(
            f"embeddings are asked for, but include {list(include)} and exclude {list(exclude)} "
            f"leave none; embeddings that can be matched: {', '.join(names) or 'none'}"
        )
    with_embedding = {id(head) for group in selected.values() for head in group}
    tied = {name: module for name, module in tied.items() if id(module) not in with_embedding}
    if tied:
        logger.warning("left alone, their weight is tied to another module: %s", ", ".join(tied))
    refused = {
        name: why
        for name, why in refused.items()
        if _matches([name], include) and not _matches([name], exclude)
    }
    if not layers:
        raise SurgeryError(
            f"include {list(include)} and exclude {list(exclude)} leave no layer{_reasons(refused)}"
            f"; {_choices(candidates)}"
        )
    if refused:
        logger.warning("left alone, not to be factorized%s", _reasons(refused))
    return Match(layers, list(tied), selected, refused)


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


def _candidates(
    model: nn.Module, embeddings: Mapping[int, object]
) -> dict[int, tuple[list[str], nn.Module]]:
    """Names and module of every layer that patterns may select, by identity, in module order."""
    found: dict[int, tuple[list[str], nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_matrix_layer(module) or id(module) in embeddings:
            found.setdefault(id(module), ([], module))[0].append(name)
    return found


def _refused(model: nn.Module) -> dict[str, str]:
    """Names of modules with matrices that are no layers of a known kind, and what they are."""
    found = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if is_matrix_layer(module) or isinstance(module, OWN | nn.Embedding):
            continue
        if isinstance(module, nn.Linear):
            found[name] = f"{kind} is a subclass of nn.Linear, which may compute something else"
            continue
        held = [
            f"{own} {list(parameter.shape)}"
            for own, parameter in module._parameters.items()
            if parameter is not None
            and parameter.ndim > 1
            and min(parameter.shape[-2:]) >= LEAST_SIDE
        ]
        if held:
            found[name] = f"{kind} holds {', '.join(held)}, which no nn.Linear or Conv1D multiplies"
    return found


def _reasons(refused: Mapping[str, str], most: int = 8) -> str:
    """One line per reason would be lost among warnings; layers of one kind share theirs."""
    places: dict[str, list[str]] = {}
    for name, why in refused.items():
        places.setdefault(why, []).append(name)
    parts = [
        f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''}"
        f" ({why})"
        for why, names in places.items()
    ]
    return f": {'; '.join(parts)}" if parts else ""


def _embeddings(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Identities of the tables that can be factorized, and the heads tied to each."""
    known = _input_embedding(model)
    users = _users(model)
    found = {}
    for module in model.modules():
        if getattr(module, "rank", None) == 0:
            continue  # nothing is left to prune
        if isinstance(module, LowRankHead):
            if users[id(module.weight)] == [module]:
                found[id(module)] = list[nn.Module]()
            continue
        factored = isinstance(module, LowRankEmbedding)
        input_table = is_embedding(module) and (known is None or module is known)
        if not (factored or input_table):
            continue
        heads = [user for user in users[id(module.weight)] if user is not module]
        if all(type(head) is (LowRankHead if factored else nn.Linear) for head in heads):
            found[id(module)] = heads
    return found


def _input_embedding(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_input_embeddings", None)
    try:
        known = None if get is None else get()
    except NotImplementedError:  # what transformers raises for models that it cannot see through
        return None
    return known if isinstance(known, nn.Module) else None


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _users(model: nn.Module) -> dict[int, list[nn.Module]]:
    """From the identity of a parameter to all modules that hold it."""
    found: dict[int, dict[int, nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), {})[id(module)] = module
    return {parameter: list(modules.values()) for parameter, modules in found.items()}


def _choices(candidates: dict[int, tuple[list[str], nn.Module]], most: int = 40) -> str:
    names = [names[0] or "'' (the model itself)" for names, _ in candidates.values()]
    if not names:
        return "the model has no nn.Linear or Conv1D layer"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "layers that can be matched: " + ", ".join(names[:most]) + more

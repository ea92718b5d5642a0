"""Where attention heads and feed-forward neurons are in the transformer blocks that are known.

A unit runs through several matrices: *producers* compute its features, one *consumer* reads them.
A head is some rows of query, key and value, and as many columns of the output projection; a neuron
is one row of the first feed-forward matrix and one column of the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lowrank.density import LayerShape, LinearCost
from lowrank.errors import SurgeryError
from lowrank.linear import layer_shape


@dataclass(frozen=True, slots=True)
class HeadFields:
    """Attributes of an attention module that say how many heads it has."""

    owner: str
    """Path of that module from the one that holds all matrices; '' for itself."""
    size: str
    """Features of a head; the same for any number of heads."""
    count: str
    total: str | None = None
    """Features of all heads."""


@dataclass(frozen=True, slots=True)
class BlockForm:
    """Paths of the matrices in a module that holds all those of one kind of unit."""

    producers: tuple[str, ...]
    consumer: str
    stacked: int = 1
    """Matrices stacked in each producer: GPT-2 computes query, key and value in one."""
    heads: HeadFields | None = None
    """None for feed-forward neurons."""


_BERT_HEADS = BlockForm(
    ("self.query", "self.key", "self.value"),
    "output.dense",
    heads=HeadFields("self", "attention_head_size", "num_attention_heads", "all_head_size"),
)
_BERT_NEURONS = BlockForm(("intermediate.dense",), "output.dense")
_BERT_LIKE = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm_roberta": "XLMRoberta",
    "camembert": "Camembert",
    "electra": "Electra",
}

FORMS: dict[str, BlockForm] = {
    **{f"modeling_{file}.{name}Attention": _BERT_HEADS for file, name in _BERT_LIKE.items()},
    **{f"modeling_{file}.{name}Layer": _BERT_NEURONS for file, name in _BERT_LIKE.items()},
    "modeling_distilbert.DistilBertSelfAttention": BlockForm(
        ("q_lin", "k_lin", "v_lin"),
        "out_lin",
        heads=HeadFields("", "attention_head_size", "n_heads"),
    ),
    "modeling_distilbert.FFN": BlockForm(("lin1",), "lin2"),
    "modeling_gpt2.GPT2Attention": BlockForm(
        ("c_attn",),
        "c_proj",
        stacked=3,
        heads=HeadFields("", "head_dim", "num_heads", "split_size"),
    ),
    "modeling_gpt2.GPT2MLP": BlockForm(("c_fc",), "c_proj"),
}
"""By file and class in transformers. Not by structure: a module that looks alike may reshape its
features by the width it was built with."""


@dataclass(frozen=True, slots=True)
class UnitShape(LayerShape):
    """A consumer's matrix, with what its units are."""

    unit_size: int
    """Features per unit."""
    producer_in: int
    """Input features of all producers together."""

    @property
    def cost_of_units(self) -> LinearCost:
        """In parameters: rows of the producers and columns of the consumer."""
        unit_cost = self.unit_size * (self.producer_in + self.out_features)
        return LinearCost(self.in_features // self.unit_size, unit_cost)


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Heads of one attention module, or neurons of one feed-forward module."""

    producers: tuple[str, ...]
    """Names in the model; `stacked` as in the form."""
    stacked: int
    shape: UnitShape


def find_units(model: nn.Module, matched: Mapping[str, nn.Module]) -> dict[str, UnitGroup]:
    """Groups of units whose matrices are the matched ones.

    Args:
        model: With known blocks.
        matched: Dense layers of it, by name.

    Returns:
        The groups, by the name of their consumer, in the order of `matched`.

    Raises:
        SurgeryError: A layer belongs to no known block, or a block is matched in part.
    """
    names = {id(layer): name for name, layer in matched.items()}
    groups: dict[str, UnitGroup] = {}
    grouped: set[str] = set()
    for path, module in model.named_modules():
        form = form_of(module)
        if form is None:
            continue
        paths = (*form.producers, form.consumer)
        members = [names.get(id(module.get_submodule(member))) for member in paths]
        known = [name for name in members if name is not None]
        if not known:
            continue
        if len(known) < len(paths):
            missing = [p for p, name in zip(paths, members, strict=True) if name is None]
            raise SurgeryError(
                f"{path}: heads and neurons are pruned in all their matrices; {', '.join(known)} "
                f"matched, {', '.join(f'{path}.{p}' for p in missing)} did not, or is tied"
            )
        groups[known[-1]] = _group(path, module, form, known)
        grouped.update(known)
    _refuse_unknown(model, [name for name in matched if name not in grouped])
    return {name: groups[name] for name in matched if name in groups}


def form_of(module: nn.Module) -> BlockForm | None:
    """The form of a module, if it is known. Cross-attention is not: its keys and values come from
    other positions."""
    if getattr(module, "is_cross_attention", False):
        return None
    kind = type(module)
    return FORMS.get(f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")


def _group(path: str, module: nn.Module, form: BlockForm, names: list[str]) -> UnitGroup:
    *producers, consumer = (
        layer_shape(module.get_submodule(p)) for p in (*form.producers, form.consumer)
    )
    width = consumer.in_features
    size = unit_size(path, module, form, [p.out_features for p in producers], width)
    # rows per feature of the consumer: one, or one for each of the stacked matrices
    producer_in = form.stacked * sum(p.in_features for p in producers)
    shape = UnitShape(width, consumer.out_features, unit_size=size, producer_in=producer_in)
    return UnitGroup(tuple(names[:-1]), form.stacked, shape)


def unit_size(
    path: str, module: nn.Module, form: BlockForm, produced: Sequence[int], consumed: int
) -> int:
    """Features per unit of a block.

    Args:
        path: Of the block, for the message.
        module: The block.
        form: Its form.
        produced: Output features of each producer.
        consumed: Input features of the consumer.

    Raises:
        SurgeryError: These are not the same whole number of units.
    """
    heads = form.heads
    size = 1 if heads is None else getattr(module.get_submodule(heads.owner), heads.size)
    if consumed % size or any(width != form.stacked * consumed for width in produced):
        raise SurgeryError(
            f"{path}: its matrices must agree in width, in units of {size}, got {list(produced)} "
            f"output features for {consumed} input features"
        )
    return int(size)


def _refuse_unknown(model: nn.Module, names: list[str]) -> None:
    if not names:
        return
    parent = type(model.get_submodule(names[0].rpartition(".")[0])).__name__
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    known = sorted({name.partition(".")[0].removeprefix("modeling_") for name in FORMS})
    raise SurgeryError(
        f"layer {names[0]!r}{more} is in a {parent}, whose heads or feed-forward neurons are not "
        f"known here; known are the blocks of {', '.join(known)}: exclude the layer, or take a "
        "method that prunes single matrices"
    )

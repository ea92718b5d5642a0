"""How models are compressed: the block `method`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from orchestrator.spec_block import Block, PlacedErrors, rule

Density = Annotated[float, Field(gt=0, le=1)]
Patterns = Annotated[list[str], Field(min_length=1)]

Kind = Literal[
    "adaptive",
    "low-rank",
    "flop-l0",
    "faithful",
    "flop-agp",
    "agp",
    "np-l0",
    "heads-ffn",
    "from-scratch",
]

GATED_FRACTION = {
    "adaptive": 0.4,
    "low-rank": 0.0,
    "flop-l0": 0.3,
    "faithful": 1.0,
    "flop-agp": 0.6,
    "agp": 0.6,
    "np-l0": 0.3,
    "heads-ffn": 0.3,
    "from-scratch": 0.0,
}
"""Part of the steps before the structure is fixed, by kind. Gates need some hundred steps and
recovery is where the loss comes back; magnitudes need time to grow apart, and the published method
samples its gates to the end (docs/results/language-modelling.md). `heads-ffn` has the gates and the
multipliers of `flop-l0`, and so its part."""


_START = ("start", "calibration_batches", "budget")
_RANKS = (*_START, "start_rank", "rank_multiple")
_GATED = ("gated_fraction", "learning_rate", "anneal_fraction", "gate_lr")
_CONCRETE = ("penalty_lr", "price_floor", "temperature", "init_open_prob")
_PUBLISHED = ("penalty_lr", "gate_lr", "learning_rate", "anneal_fraction", "init_open_prob")
OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "adaptive": (*_START, "start_excess", "rank_multiple", *_GATED, "floor_fraction"),
    "low-rank": (*_RANKS, "allocation", "floor_fraction"),
    "flop-l0": (*_RANKS, *_GATED, *_CONCRETE, "floor_fraction"),
    "faithful": _PUBLISHED,
    "flop-agp": (*_RANKS, *_GATED, "scope"),
    "agp": (*_GATED, "granularity", "block", "movement", "scope", "budget"),
    "np-l0": (*_GATED, *_CONCRETE, "budget"),
    "heads-ffn": (*_GATED, *_CONCRETE, "floor_fraction", "budget"),
    "from-scratch": ("form", "rank_multiple"),
}
"""Fields that not every kind reads, by kind."""
OWN_SCALE = ("penalty_lr", "gate_lr", "gated_fraction")
"""Fields whose sensible values differ between kinds by more than a search would cover."""
LATER = ("embeddings",)
"""Fields that older campaigns did not have."""
NOT_COMMON = tuple(dict.fromkeys(name for own in OWN_FIELDS.values() for name in own))


class MethodSpec(Block):
    """A compression method; all kinds share budget, steps, rates and distillation."""

    kind: Kind = "adaptive"
    """`adaptive`: ranks by deterministic gates, the default. `low-rank`: fixed ranks. `flop-l0`:
    ranks by hard concrete gates (Wang et al. 2020), `faithful`: the same as published. `flop-agp`:
    ranks by the magnitude of a trained diagonal. `agp`: magnitude or movement pruning of weights,
    blocks, rows, columns. `np-l0`: hard concrete gates on input features. `heads-ffn`: the same on
    attention heads and feed-forward neurons of BERT-like models and GPT-2 (after Xia et al. 2022).
    `from-scratch`: a small model trained anew for the dense model's steps and these."""
    include: Patterns = Field(default=["*"])
    exclude: list[str] = Field(default=["*lm_head*", "*classifier*", "*score*", "*pooler*"])
    density: Density = 0.3
    """Kept fraction of the budget of the matched matrices."""
    embeddings: bool = False
    """`include` and `exclude` select the token embedding too, by its own name; for kinds that prune
    ranks and `from-scratch`. An output projection tied to it is part of it; one that is not is a
    matrix like others, which the default `exclude` leaves out."""
    budget: Literal["parameters", "macs", "latency"] = "parameters"
    """What the density is a fraction of: parameters, multiply-accumulates of the task's inputs, or
    the time that the layers take on the training device."""
    steps: int = Field(800, ge=0)
    """Training steps in all; equal for all kinds."""
    gated_fraction: float | None = Field(None, ge=0, le=1)
    """Part of the steps before the projection, in which the structure is chosen; by default 0.4
    for `adaptive`, 0.3 for hard concrete gates, 0.6 for magnitudes, 1 for `faithful`."""
    anneal_fraction: float = Field(0.75, ge=0, le=1)
    """Part of the gated steps over which the target falls from 1 to `density`."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Of weights before the projection; by default that after it. One warm-up and one cosine go
    over all steps."""
    finetune_learning_rate: float = Field(3e-3, gt=0, le=1)
    """After the projection; of all steps where there is no gated phase. Low-rank factors want two
    to four times the rate of the dense model."""
    penalty_lr: float | None = Field(None, gt=0, le=100)
    """Hard concrete gates: ascent rate of the two multipliers, by default 0.2; they miss the target
    at rates far from the best."""
    gate_lr: float | None = Field(None, ge=0, le=10)
    """Rate of gates: by default 2 / gated steps for the scores of `adaptive`, whose range is 1 (0
    leaves the ranks uniform), 30 / gated steps for hard concrete gates, so that a gate can shut in
    a quarter of them, 1e-3 for diagonals and 1e-2 for movement scores, as published."""
    start: Literal["covariance", "svd"] = "covariance"
    """Factors closest in the layer's outputs on training data, or closest in the weights."""
    start_rank: Literal["full", "break-even"] = "full"
    """`break-even`: as many parameters as the matrix has; cheaper, but no layer can stay dense."""
    start_excess: float = Field(2.0, ge=1, le=1000)
    """`adaptive` only: rank at the start, of the rank that a uniform choice would give a layer, and
    no more than the break-even rank."""
    rank_multiple: int | None = Field(None, ge=1)
    """What ranks are multiples of; by default 8, or less where ranks are small, since processors
    multiply in such widths. 1: any rank. What rounding costs is part of the budget."""
    calibration_batches: int = Field(40, ge=1)
    """Training batches over which the inputs' covariance is taken."""
    allocation: Literal["uniform", "greedy"] = "uniform"
    """`low-rank` only: equal fractions of every layer, or largest singular values per cost."""
    floor_fraction: float = Field(0.5, ge=0, le=1)
    """Least rank of a layer, as a fraction of its uniform rank; for `heads-ffn` least heads and
    least neurons of a block, as a fraction of what a uniform choice would leave."""
    price_floor: float = Field(0.1, ge=0, le=1)
    """Hard concrete gates: least gradient of the expected size in log_alpha; without it the penalty
    cannot reach open gates."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Of hard concrete gates."""
    init_open_prob: float | None = Field(None, gt=0, lt=1)
    """P(z > 0) of hard concrete gates at insertion; by default 0.999, and 0.99 for `faithful`, a
    drop rate of 0.1."""
    granularity: Literal["weight", "block", "row", "column"] = "weight"
    """`agp` only: what is removed as one."""
    block: int = Field(16, ge=1)
    """`agp` only: side of a block."""
    movement: bool = False
    """`agp` only: movement scores instead of magnitudes."""
    scope: Literal["global", "tensor"] = "global"
    """`agp` and `flop-agp`: one budget for all matrices, or each by itself."""
    form: Literal["width", "low-rank"] = "width"
    """`from-scratch` only: a narrower dense model, or factors of fixed rank."""
    distill: float = Field(0.5, ge=0, le=1)
    """Weight of the dense model's predictions in the loss; 0 trains on the labels alone."""
    distill_temperature: float = Field(1.0, gt=0, le=20)
    distill_hidden: float = Field(0.0, ge=0)
    """Weight of the mean squared difference of hidden states, relative to the dense model's."""
    max_grad_norm: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _own_fields(self) -> MethodSpec:
        known = fields_of(self.kind)
        message = f"is not a field of kind {self.kind!r}, which has {', '.join(known)}"
        errors = [
            rule((name,), message)
            for name in NOT_COMMON
            if name not in known and getattr(self, name) != _default(name)
        ]
        if self.budget == "latency" and "budget" in known and "start" not in known:
            errors.append(
                rule(("budget",), f"`latency` needs a kind that prunes ranks, got {self.kind!r}")
            )
        errors += self._embedding_errors()
        if self.kind == "adaptive" and self.anneal_fraction == 1:
            message = "anneal_fraction < 1 must hold for kind 'adaptive', whose gates then harden"
            errors.append(rule(("anneal_fraction",), f"{message}, got 1"))
        if self.steps == 0 and GATED_FRACTION[self.kind]:
            errors.append(rule(("steps",), f"steps >= 1 must hold for kind {self.kind!r}, got 0"))
        if self.distill_hidden and self.kind == "from-scratch" and self.form == "width":
            message = "compares hidden states of one width, which a narrower model does not have"
            errors.append(rule(("distill_hidden",), message))
        if errors:
            raise PlacedErrors(errors, type(self))
        return self

    def _embedding_errors(self) -> list[dict[str, Any]]:
        if not self.embeddings:
            return []
        if self.kind in ("agp", "np-l0", "heads-ffn"):
            return [rule(("embeddings",), f"kind {self.kind!r} prunes no embeddings")]
        if self.budget == "latency":
            message = "cannot be pruned under `budget: latency`, which times matrices only"
            return [rule(("embeddings",), message)]
        return []

    @model_serializer(mode="wrap")
    def _without_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later fields at their defaults: keys of models and hashes of specs that do not
        use them stay as they were."""
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if k not in LATER or v != _default(k)}

    def deciding(self) -> dict[str, Any]:
        """The fields that decide a result, for keys of trials; JSON.

        As they were written before ranks had multiples, where they have none.
        """
        values = self.model_dump(mode="json")
        if self.rank_multiple == 1 or "rank_multiple" not in OWN_FIELDS[self.kind]:
            del values["rank_multiple"]
        return values

    @property
    def gated_steps(self) -> int:
        """Steps before the projection."""
        fraction = self.gated_fraction
        if fraction is None:
            fraction = GATED_FRACTION[self.kind]
        # a kind that chooses by training needs a step to do so, however few there are
        least = 1 if GATED_FRACTION[self.kind] else 0
        return max(least, round(fraction * self.steps))

    @property
    def gated_learning_rate(self) -> float:
        """Of weights before the projection."""
        return self.finetune_learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def finetune_steps(self) -> int:
        """Steps after the projection."""
        return self.steps - self.gated_steps


def fields_of(kind: str) -> list[str]:
    """The fields that a kind reads."""
    own = OWN_FIELDS[kind]
    return [name for name in MethodSpec.model_fields if name in own or name not in NOT_COMMON]


def merge_method(*changes: dict[str, Any]) -> dict[str, Any]:
    """Fields of one method, later changes over earlier ones.

    A change of kind leaves behind what the new kind does not have, and what means another thing
    there: what a campaign says for its main method does not stand in the way of a baseline.
    """
    merged: dict[str, Any] = {}
    for change in changes:
        kind = change.get("kind", merged.get("kind"))
        if kind != merged.get("kind") and kind in get_args(Kind):
            known = set(fields_of(str(kind))) - set(OWN_SCALE)
            merged = {name: value for name, value in merged.items() if name in known}
        merged |= change
    return merged


def _default(name: str) -> Any:
    return MethodSpec.model_fields[name].default

"""Which trials a campaign runs: the block `search`, and the methods that it compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from orchestrator.spec_block import Block, Name, PlacedErrors, rule
from orchestrator.spec_ladder import LadderSpec, ladder_errors, without_truth
from orchestrator.spec_method import Density, MethodSpec, fields_of
from orchestrator.spec_stopping import StoppingSpec, stopping_errors
from orchestrator.spec_values import (
    CHANGEABLE,
    SEARCHABLE,
    Choice,
    Distribution,
    Setting,
    bad_values,
    refused,
    setting_kind,
)
from orchestrator.spec_warm import WarmStart, with_names_alone

_Trials = Annotated[int, Field(ge=1, le=10_000)]
_Repeats = Annotated[int, Field(ge=1, le=1000)]


def _changeable_in_schema(schema: dict[str, Any]) -> None:
    setting = schema["properties"]["fields"]["additionalProperties"]
    kind = MethodSpec.model_json_schema()["properties"]["kind"]
    schema["properties"] |= {"kind": kind} | dict.fromkeys(SEARCHABLE, setting)


class ComparedMethod(Block):
    """One of the methods that a campaign compares: `method` with changes, tuned by itself.

    In the file the fields stand directly in the block, as in `search`: `kind: flop-l0` or
    `penalty_lr: 0.1` is what the method has, a list or a range is searched. What it does not give
    it has from `search` and from `method`.
    """

    model_config = ConfigDict(json_schema_extra=_changeable_in_schema)

    trials_per_density: _Trials | None = None
    """By default that of `search`."""
    repeats: _Repeats | None = None
    """By default that of `search`."""
    fields: dict[str, Setting] = Field(default_factory=dict)
    """`kind` and any other field of `method` but those that select matrices, and the density."""

    @property
    def changes(self) -> dict[str, Any]:
        """Fields that have one value in every trial of this method."""
        return {k: v for k, v in self.fields.items() if setting_kind(v) == "value"}

    @property
    def searched(self) -> dict[str, Distribution | list[Any]]:
        """Fields that this method's trials draw."""
        return {k: v for k, v in self.fields.items() if isinstance(v, list | Distribution)}

    @model_validator(mode="before")
    @classmethod
    def _direct_fields(cls, block: Any) -> Any:
        # with the fields that may not stand here, which are then told from unknown keys
        return _gather_fields(cls, block, list(MethodSpec.model_fields))

    @field_validator("fields")
    @classmethod
    def _possible(cls, value: dict[str, Any]) -> dict[str, Any]:
        errors: list[dict[str, Any]] = []
        for name, setting in value.items():
            if name not in CHANGEABLE:
                message = "is not a field in which methods may differ"
                errors.append(rule((name,), f"{message}: {', '.join(CHANGEABLE)}"))
            elif setting_kind(setting) == "value":
                errors += refused(name, setting, (name,))
            else:
                errors += bad_values(name, setting)
        if errors:
            raise PlacedErrors(errors, MethodSpec)
        return value


def _searchable_in_schema(schema: dict[str, Any]) -> None:
    choice = schema["properties"]["fields"]["additionalProperties"]
    schema["properties"] |= {name: choice for name in SEARCHABLE}
    schema["properties"]["methods"]["additionalProperties"] = False  # other names
    schema["properties"]["ladder"]["anyOf"].append({"type": "boolean"})
    names = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    schema["properties"]["warm_start"]["anyOf"].append(names)


class SearchSpec(Block):
    """Which trials to run: every density, `trials_per_density` draws of everything else.

    In the file the fields stand directly in the block, `penalty_lr: {log_uniform: [0.01, 1]}`,
    or under `fields`.
    """

    model_config = ConfigDict(json_schema_extra=_searchable_in_schema)
    TRUTHS = frozenset({"ladder"})

    density: list[Density] = Field(min_length=1)
    trials_per_density: _Trials = 1
    """Draws of the searched fields, of each method."""
    sampler: Literal["random", "gp"] = "random"
    """`gp`: a Bayesian search over quality and size, by Gaussian processes: which values lead to
    the front, density among them, is learnt from the trials that have ended. As many trials in all,
    not as many at each density."""
    startup: int = Field(8, ge=2, le=10_000)
    """Of `gp`: draws at random before it suggests any, over all densities in turn. 8: two for each
    dimension of three searched fields and the density."""
    batch: int = Field(4, ge=1, le=1000)
    """Of `gp`: trials that it suggests at once, when all before have ended. Larger batches use a
    large cluster better and learn less; batches of 2 and of 4 found the same fronts."""
    tune_at: Density | None = None
    """One of `density`: draws are made there only, and the other densities take the values of
    the draw that was best on validation. By default every density has draws of its own."""
    repeats: _Repeats = 1
    """Runs of each density's best draw, itself included: the others have the seeds that follow
    the campaign's, and share its dense reference."""
    repeats_at: list[Density] | None = Field(default=None, min_length=1)
    """Some of `density`: the others have one run each. By default all are repeated."""
    finalists: _Repeats | None = None
    """Runs of each setting that is on the front of quality and size when all other trials have
    ended, itself and its repeats included; by default no further ones. Each run is timed."""
    ladder: LadderSpec | None = None
    """One descent for all densities instead of a training for each; `true` for its defaults. Draws,
    repeats and runs of finalists are of whole ladders."""
    warm_start: WarmStart | None = None
    """Earlier campaigns whose best settings are the first draws, at no cost in trials: the number
    of draws stays what it is. With `gp` what they came to counts among what it learns from."""
    stopping: StoppingSpec | None = None
    """Stops draws that others are ahead of in quality and size; by default nobody is stopped."""
    methods: dict[Name, ComparedMethod] = Field(default_factory=dict)
    """Methods to compare, by name; by default one, `method` itself."""
    fields: dict[str, Choice] = Field(default_factory=dict)
    """Any field of `method`: a list of values to choose from, or a range. Each of `methods` whose
    kind has the field searches it too, unless it gives the field itself."""

    @model_validator(mode="before")
    @classmethod
    def _direct_fields(cls, block: Any) -> Any:
        return _gather_fields(cls, with_names_alone(without_truth(block)), SEARCHABLE)

    @field_validator("density")
    @classmethod
    def _distinct(cls, value: list[float]) -> list[float]:
        if len(set(value)) != len(value):
            raise ValueError(f"densities must differ, got {value}")
        return value

    @field_validator("fields")
    @classmethod
    def _searchable(cls, value: dict[str, Any]) -> dict[str, Any]:
        errors = [error for name, choice in value.items() for error in bad_values(name, choice)]
        if errors:
            raise PlacedErrors(errors, MethodSpec)
        return value

    @model_validator(mode="after")
    def _tuned_where_it_runs(self) -> SearchSpec:
        errors = []
        if self.tune_at is not None and self.tune_at not in self.density:
            message = f"must be one of search.density {self.density}, got {self.tune_at}"
            errors.append(rule(("tune_at",), message))
        if self.sampler != "random":
            for name in ("tune_at", "ladder"):
                if getattr(self, name) is not None:
                    message = f"has no meaning with sampler {self.sampler!r}, which searches over"
                    errors.append(rule((name,), f"{message} densities itself"))
        unknown = [density for density in self.repeats_at or () if density not in self.density]
        if unknown:
            message = f"must be some of search.density {self.density}, got {unknown[0]}"
            errors.append(rule(("repeats_at",), message))
        if self.ladder is not None:
            others = {"tune_at": self.tune_at, "repeats_at": self.repeats_at}
            errors += ladder_errors(self.ladder, self.density, **others)
        if self.stopping is not None:
            errors += self._misfits_of_stopping(self.stopping)
        if errors:
            raise PlacedErrors(errors, SearchSpec)
        return self

    def _misfits_of_stopping(self, stopping: StoppingSpec) -> Iterator[dict[str, Any]]:
        methods = list(self.methods.values()) or [ComparedMethod()]
        draws = [each.trials_per_density or self.trials_per_density for each in methods]
        sampler = None if self.sampler == "random" else self.sampler
        ladder = None if self.ladder is None else "one"
        return stopping_errors(stopping, draws, len(self.tuned), sampler=sampler, ladder=ladder)

    @property
    def tuned(self) -> list[float]:
        """The densities that have draws of their own."""
        return self.density if self.tune_at is None else [self.tune_at]

    @property
    def descending(self) -> list[float]:
        """The densities from high to low."""
        return sorted(self.density, reverse=True)

    def repeats_of(self, compared: ComparedMethod, density: float) -> int:
        """Runs of a method's best draw at a density, itself included."""
        if self.repeats_at is not None and density not in self.repeats_at:
            return 1
        return compared.repeats or self.repeats

    def shared_fields(
        self, compared: ComparedMethod, kind: str
    ) -> dict[str, Distribution | list[Any]]:
        """The fields of the search itself that a method of some kind searches too."""
        # a campaign with one method has no use for a field that its kind lacks: it is told so
        known = fields_of(kind) if self.methods else SEARCHABLE
        return {k: v for k, v in self.fields.items() if k in known and k not in compared.fields}


def _gather_fields(model: type[Block], block: Any, names: Sequence[str]) -> Any:
    """Move the method's fields that stand directly in a block into its `fields`."""
    if not isinstance(block, dict):
        return block
    direct = {name: block[name] for name in names if name in block}
    rest = {name: value for name, value in block.items() if name not in direct}
    fields = block.get("fields", {})
    if not isinstance(fields, dict):
        return rest  # to be refused for that alone
    message = "is given twice, here and under `fields`"
    if twice := [rule((name,), message) for name in direct if name in fields]:
        raise PlacedErrors(twice, model)
    return rest | {"fields": fields | direct}

"""Rules such as `quality_drop <= 2%`: what a model must keep to be selected or promoted."""

from __future__ import annotations

import difflib
import math
import operator
import re
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.records import Densities, ModelRecord
from orchestrator.wording import MISSING, count, milliseconds, percent, ratio

FIELDS = {
    "quality_drop": "relative loss of validation quality against dense",
    "density": "kept fraction of the prunable matrices",
    "parameters": "kept fraction of all parameters, or their number: 5 M",
    "bytes": "kept fraction of the weights file, or its size: 50 MB",
    "macs": "kept fraction of the multiply-accumulates per token, or their number: 3 M",
    "speedup": "dense time / compressed time",
    "latency_ms": "milliseconds of one forward pass, median",
    "latency_p50_ms": "the same under the name that servers give it",
}
MEASURED = ("speedup", "latency_ms", "latency_p50_ms")
"""Fields that depend on a batch; all others are fractions and may be written in percent."""
_COUNTS = {"k": 10**3, "M": 10**6, "B": 10**9}
UNITS: dict[str, dict[str, int]] = {
    "bytes": {
        "B": 1,
        "kB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
    },
    "parameters": _COUNTS,
    "macs": _COUNTS,
    "latency_ms": {"ms": 1},
    "latency_p50_ms": {"ms": 1},
    "speedup": {"x": 1},
}
"""What may follow the number, as reports write it. With a unit, `bytes`, `parameters` and `macs`
are no fractions but amounts."""

OPERATORS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}

MAX_SHOWN = 100
"""Characters of a rule in a message."""
_GRAMMAR = (
    "a rule reads `FIELD OP NUMBER UNIT`, for example `quality_drop <= 2%` or "
    "`latency_ms <= 8 ms @ batch 1` or `bytes <= 50 MB`; "
    f"FIELD: {', '.join(FIELDS)}; OP: {', '.join(OPERATORS)}; "
    f"`@ batch N` may follow {', '.join(MEASURED)}, % any other field"
)

_RULE = re.compile(
    r"""\s* (?P<field>\w+) \s* (?P<op><=|>=|<|>) \s*
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?) \s* (?P<unit>%|[a-z]+)? \s*
    (?:@\s*batch\s+(?P<batch>\d{1,9})\s*)?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)

_AMOUNTS = {"bytes": "num_bytes", "parameters": "num_parameters", "macs": "macs_per_token"}
"""The field of a record's size that an amount limits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One comparison of a measured figure with a fixed number."""

    field: str
    """A key of `FIELDS`."""
    op: str
    """A key of `OPERATORS`."""
    value: float
    """Fractions as fractions: 2% is 0.02; amounts in bytes, parameters, multiply-accumulates."""
    unit: str = ""
    """As it was written; it decides whether `bytes`, `parameters`, `macs` are amounts."""
    batch: int | None = None
    """Of a measured field; None means the largest batch that was measured."""

    def __post_init__(self) -> None:
        if self.field not in FIELDS:
            near = difflib.get_close_matches(self.field.lower(), FIELDS, n=1, cutoff=0.5)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown field {self.field!r}{hint}")
        if self.op not in OPERATORS:
            raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, got {self.op!r}")
        if not math.isfinite(self.value):
            raise ValueError(f"the number must be finite, got {self.value}")
        if self.unit and self.unit not in UNITS.get(self.field, {}):
            raise ValueError(_wrong_unit(self.field, self.unit))
        if self.batch is not None and self.field not in MEASURED:
            raise ValueError(f"{self.field!r} does not depend on a batch")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch >= 1 must hold, got {self.batch}")

    @property
    def is_amount(self) -> bool:
        """Whether it limits an amount, and not a fraction of dense or a measured figure."""
        return bool(self.unit) and self.field not in MEASURED

    def value_of(self, record: ModelRecord, dense: ModelRecord) -> float:
        """The figure of a model that this rule judges; NaN where it was not measured."""
        if self.field == "quality_drop":
            return record.metric.drop(dense.quality, record.quality)
        if self.field == "speedup":
            return record.speedup(self.batch)
        if self.field in ("latency_ms", "latency_p50_ms"):
            return record.latency_ms(self.batch)
        if self.is_amount:
            return float(getattr(record.size, _AMOUNTS[self.field]))
        densities = Densities.of(record.size, dense.size)
        return float(getattr(densities, "prunable" if self.field == "density" else self.field))

    def check(self, value: float) -> bool:
        """Whether the figure passes. NaN never does: what was not measured is not met."""
        return bool(OPERATORS[self.op](value, self.value))

    def shortfall(self, value: float) -> float:
        """How far a figure is from passing, in its own unit: 0 if it passes, inf if NaN."""
        if self.check(value):
            return 0.0
        return math.inf if math.isnan(value) else abs(value - self.value)

    def in_words(self, value: float) -> str:
        """A figure of this rule's field, for people: `1.6%`, `1.43x`, `12.30 ms`."""
        if math.isnan(value):
            return MISSING
        if self.is_amount:
            return count(value, "B" if self.field == "bytes" else "")
        if self.field == "speedup":
            return ratio(value)
        return milliseconds(value) if self.field in MEASURED else percent(value)

    def __str__(self) -> str:
        """The canonical text: `parse_rule(str(rule)) == rule`."""
        if self.unit:
            number = _decimal(self.value, 0, UNITS[self.field][self.unit])
            text = f"{self.field} {self.op} {number} {self.unit}"
        else:
            measured = self.field in MEASURED
            text = f"{self.field} {self.op} {_decimal(self.value, 0 if measured else 2)}"
            text += "" if measured else "%"
        return text if self.batch is None else f"{text} @ batch {self.batch}"


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Args:
        text: `FIELD OP NUMBER[%| UNIT] [@ batch N]`, for example `latency_ms < 20 @ batch 1`.

    Raises:
        ValueError: anything else; the message states the grammar and the fields.
    """
    try:
        return _read(text)
    except ValueError as error:
        shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
        raise ValueError(f"cannot read the rule {shown!r}: {error}; {_GRAMMAR}") from None


def _read(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        raise ValueError("it does not follow the grammar")
    field, unit = match["field"], match["unit"] or ""
    if unit == "%" and field in MEASURED:
        raise ValueError(f"{field!r} is no fraction, so it takes no %")
    if unit and unit != "%" and field in FIELDS and unit not in UNITS.get(field, {}):
        raise ValueError(_wrong_unit(field, unit))
    # through Decimal, so that 2.3% is the float nearest to 0.023, and str() can undo it
    number = Decimal(match["number"])
    if unit == "%":
        value = float(number.scaleb(-2))
    else:
        value = float(number * UNITS.get(field, {}).get(unit, 1))
    batch = int(match["batch"]) if match["batch"] else None
    amount = "" if unit == "%" else unit
    rule = Rule(field=field, op=match["op"], value=value, unit=amount, batch=batch)
    if not unit and rule.field not in MEASURED and value > 1:
        # 2 for 2% is the likely slip, and as 200% it would let every model through
        amounts = UNITS.get(rule.field)
        raise ValueError(
            f"{rule.field!r} is a fraction: write {match['number']}% or, "
            f"if {value:g} times dense is meant, {_decimal(value, 2)}%"
            + (f"; an amount needs its unit: {', '.join(amounts)}" if amounts else "")
        )
    return rule


def _wrong_unit(field: str, unit: str) -> str:
    known = UNITS.get(field)
    if known is None:
        return f"{field!r} takes a % and no other unit, got {unit!r}"
    near = [each for each in known if each.lower() == unit.lower()]
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"the unit of {field!r} must be one of {', '.join(known)}, got {unit!r}{hint}"


def _decimal(value: float, shift: int, unit: int = 1) -> str:
    """The shortest exact decimal of `value * 10**shift / unit`, without an exponent."""
    return f"{(Decimal(repr(float(value))).scaleb(shift) / unit).normalize():f}"

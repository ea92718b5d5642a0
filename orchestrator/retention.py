"""What a campaign will hold on its disk, and what goes first when that is too much.

Pure functions of numbers: `housekeeping` looks at the disk and frees what is chosen here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum

from orchestrator.errors import CampaignError
from orchestrator.rules import UNITS
from orchestrator.wording import count

DISK_UNITS = UNITS["bytes"] | {"TB": 10**12, "TiB": 2**40}
_AMOUNT = re.compile(r"\s*(?P<number>\d{1,15}(?:\.\d{1,15})?)\s*(?P<unit>[A-Za-z]{1,3})\s*")

BYTES = 4
"""Of a weight: exports and training states are float32."""
FILES = 3 * 10**6
"""Beside a model's weights: a tokenizer of 50,000 tokens has 2 to 3 MB, its record and its curve
some 100 kB."""
PACKED = 10**6
"""What MLflow's copy has besides: the source of `lowrank`, 0.6 MB."""


class BudgetError(CampaignError):
    """The budget cannot hold what one trial needs."""

    exit_code = 2


class Stage(IntEnum):
    """What is freed, in this order."""

    LEFTOVER = 0
    """Of no use to anybody: half-written folders, Ray's own of trainings that are over, states of
    models that are finished."""
    WORKING_COPY = 1
    """Weights under models/KEY that MLflow has as well: they can be fetched back."""
    STATE = 2
    """Of a training that failed, or that nobody asks for: it would begin anew."""
    WEIGHTS = 3
    """All copies of the weights of a model that is not to be kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Something that may be freed."""

    stage: Stage
    key: str
    """Of the model, or the name of a folder."""
    num_bytes: int
    rank: float = 0.0
    """Within its stage: the greatest goes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What a campaign will hold, in bytes. Estimates from above."""

    data: int
    """Prepared data."""
    dense: int
    """The dense references, with MLflow's copies."""
    models: int
    """All compressed models, with MLflow's copies."""
    training: int
    """What the trainings that run side by side need on their way."""
    single: int
    """One training, and the largest model that may come of it."""

    @property
    def most(self) -> int:
        """If nothing is freed."""
        return self.data + self.dense + self.models + self.training

    @property
    def least(self) -> int:
        """What is held even if all is freed that may be: a smaller budget is refused."""
        return self.data + self.dense + self.single


def expected_bytes(
    *,
    parameters: int,
    prunable: int,
    densities: Sequence[float],
    concurrent: int = 1,
    snapshots: int = 2,
    data_bytes: int = 0,
    artifacts_here: bool = True,
) -> Expected:
    """What the campaign of one task will hold.

    Args:
        parameters: Of the dense model.
        prunable: Of its prunable matrices.
        densities: Of every trial, each in (0, 1].
        concurrent: Trainings side by side.
        snapshots: States kept of each.
        data_bytes: Of the prepared data.
        artifacts_here: Whether MLflow's copies lie under the same storage, as they do by default; a
            server has its own.
    """
    sizes = [model_bytes(parameters, prunable, d, artifacts_here) for d in densities]
    dense = model_bytes(parameters, prunable, 1.0, artifacts_here)
    one = training_bytes(parameters, prunable, snapshots)
    return Expected(
        data=data_bytes,
        dense=dense,
        models=sum(sizes),
        training=concurrent * one,
        single=one + max(sizes, default=0),
    )


def of_all(tasks: Sequence[Expected]) -> Expected:
    """Of a campaign. Its tasks share the machines: no more is on its way than of one that has them
    for itself."""
    return Expected(
        data=sum(task.data for task in tasks),
        dense=sum(task.dense for task in tasks),
        models=sum(task.models for task in tasks),
        training=max((task.training for task in tasks), default=0),
        single=max((task.single for task in tasks), default=0),
    )


def check_budget(budget: int | None, expected: Expected) -> None:
    """Refuse a budget that one trial would break, before anything is trained.

    Raises:
        BudgetError: With the rule and the value.
    """
    if budget is None or expected.least <= budget:
        return
    raise BudgetError(
        f"retention.budget must be at least {count(expected.least, 'B')}, got "
        f"{count(budget, 'B')}: prepared data {count(expected.data, 'B')}, dense references "
        f"{count(expected.dense, 'B')}, one training and its model {count(expected.single, 'B')}"
    )


def model_bytes(parameters: int, prunable: int, density: float, artifacts_here: bool = True) -> int:
    """Of a finished model: its weights and what lies beside them, and MLflow's copy."""
    weights = BYTES * round(parameters - prunable + density * prunable)
    home = weights + FILES
    return home + (home + PACKED if artifacts_here else 0)


def state_bytes(parameters: int, prunable: int) -> int:
    """Of one training state: weights, two moments, and the best weights so far.

    While gates move there is no best, but two factors of a square matrix have twice its parameters.
    """
    return BYTES * max(4 * parameters, 3 * (parameters + prunable))


def training_bytes(parameters: int, prunable: int, snapshots: int = 2) -> int:
    """Of a training on its way: its states, one more while it is written, and its export, which is
    written by the worker and copied home."""
    export = BYTES * parameters + FILES
    return (snapshots + 1) * state_bytes(parameters, prunable) + 2 * export


def to_free(items: Iterable[Item], used: int, target: int) -> list[Item]:
    """What goes so that no more than the target is left: no stage before the one above it is
    through, and no more than is needed.

    Args:
        items: What may go.
        used: Bytes now.
        target: Bytes afterwards, if the items are enough.
    """
    chosen = []
    for item in sorted(items, key=lambda i: (i.stage, -i.rank, -i.num_bytes, i.key)):
        if used <= target:
            break
        if item.num_bytes > 0:
            chosen.append(item)
            used -= item.num_bytes
    return chosen


def parse_amount(text: str) -> int:
    """Bytes of an amount such as `20 GB`.

    Raises:
        ValueError: Anything else; the message states the rule.
    """
    match = _AMOUNT.fullmatch(text)
    units = ", ".join(DISK_UNITS)
    if match is None:
        raise ValueError(f"must be a number and one of {units}, such as `20 GB`, got {text!r:.60}")
    if match["unit"] not in DISK_UNITS:
        near = [unit for unit in DISK_UNITS if unit.lower() == match["unit"].lower()]
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"the unit must be one of {units}, got {match['unit']!r}{hint}")
    amount = int(Decimal(match["number"]) * DISK_UNITS[match["unit"]])
    if amount < 1:
        raise ValueError(f"must be more than nothing, got {text!r:.60}")
    return amount

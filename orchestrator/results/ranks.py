"""Where in a model ranks were kept: layers by index and kind of matrix."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from orchestrator.records import ModelRecord
from orchestrator.report_curves import rank_share
from orchestrator.results.read import Results


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix stands, read from its qualified name."""

    block: str
    """`3` in a plain stack; `encoder.3` where there are several; empty outside of any."""
    kind: str
    """What follows the first number, `attn.c_attn`; further numbers are stars."""


def places(names: Sequence[str]) -> dict[str, Place]:
    """Block and kind of every matrix: `transformer.h.3.attn.c_attn` is in block 3."""
    parts = {name: re.match(r"(?:(.*?)\.)??(\d+)\.(.+)", name) for name in names}
    stacks = {match[1] for match in parts.values() if match}
    found = {}
    for name, match in parts.items():
        if match is None:
            found[name] = Place("", name)
            continue
        stack = (match[1] or "").split(".")[0] if _first_differs(stacks) else match[1]
        block = match[2] if len(stacks) == 1 else f"{stack}.{match[2]}"
        found[name] = Place(block, re.sub(r"\b\d+\b", "*", match[3]))
    return found


def _first_differs(stacks: set[str]) -> bool:
    """Whether the first words of the names already tell the stacks apart."""
    return len({(stack or "").split(".")[0] for stack in stacks}) == len(stacks)


def mean_shares(trials: Sequence[ModelRecord]) -> dict[Place, float]:
    """Rank / break-even rank per place, mean over the trials; blocks and kinds in their order."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.ranks))
    shares: dict[Place, list[float]] = defaultdict(list)
    for name, place in places(names).items():
        shares[place] += [rank_share(t.ranks[name]) for t in trials if name in t.ranks]
    return {place: fmean(values) for place, values in shares.items()}


def share_by_kind(results: Results) -> dict[str, dict[float, float]]:
    """Of the reference method: per kind of matrix and density, the mean over blocks and seeds."""
    table: dict[str, dict[float, float]] = defaultdict(dict)
    for density, runs in results.runs().get(results.reference, {}).items():
        kinds: dict[str, list[float]] = defaultdict(list)
        for place, share in mean_shares(runs.trials).items():
            kinds[place.kind].append(share)
        for kind, shares in kinds.items():
            table[kind][density] = fmean(shares)
    return dict(table)

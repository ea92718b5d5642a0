"""The settings behind a task's trials: a draw and its repeats are one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.records import ModelRecord


def setting_of(trial: ModelRecord) -> str:
    """What is common to a draw and its repeats, whichever version wrote their records."""
    # ranks had no multiples when records did not name them
    return json.dumps({"rank_multiple": 1} | trial.config, sort_keys=True)


def runs_of_settings(trials: Sequence[ModelRecord]) -> list[list[ModelRecord]]:
    """Per method and setting its runs, in the order of the trials."""
    groups: dict[tuple[str, str], list[ModelRecord]] = {}
    for trial in trials:
        groups.setdefault((trial.method_name, setting_of(trial)), []).append(trial)
    return list(groups.values())

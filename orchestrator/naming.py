"""What the trials of a task are called: as much of their settings as tells them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.campaign_records import FailedTrial, StoppedTrial
from orchestrator.records import ModelRecord
from orchestrator.wording import settings, short

Trial = ModelRecord | FailedTrial | StoppedTrial

USUAL = ("density", "penalty_lr")
"""Part of every name in a campaign of one method, where the trial has them."""


@dataclass(frozen=True, kw_only=True)
class TrialNames:
    """Names within one campaign's task: method and seed stand in them where there are several.

    Trials of earlier versions know no method, and failed ones no seed.
    """

    several_methods: bool
    several_seeds: bool
    searched: Mapping[str, Sequence[str]]
    """Per method: the settings in which its trials differ, beside the density."""

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> TrialNames:
        trials = list(trials)
        methods = list(dict.fromkeys(trial.method_name for trial in trials))
        return cls(
            several_methods=len(set(methods) - {""}) > 1,
            several_seeds=len({trial.seed for trial in trials} - {None}) > 1,
            searched={
                name: _differing([t.config for t in trials if t.method_name == name])
                for name in methods
            },
        )

    def settings(self, trial: Trial) -> list[str]:
        """Fields that a name shows beside the density, where they have a value."""
        searched = self.searched.get(trial.method_name, ())
        fields = searched if self.several_methods else dict.fromkeys([USUAL[1], *searched])
        return [field for field in fields if trial.config.get(field) is not None]

    def full(self, trial: Trial) -> str:
        """`adaptive, density 0.3, penalty_lr 0.1, seed 8`."""
        return self._joined(trial, ("density", *self.settings(trial)))

    def full_setting(self, trial: Trial) -> str:
        """`full` without the seed: of a draw and its repeats."""
        return replace(self, several_seeds=False).full(trial)

    def without_density(self, trial: Trial) -> str:
        """For a table with a column for it, and for what differs: `adaptive, seed 8`."""
        fields = [] if self.several_methods else USUAL[1:]
        return self._joined(trial, fields)

    def differences(self, trial: Trial) -> str:
        """Settings that are not part of `without_density`: `distill 0.5, learning_rate 0.1`."""
        named = () if self.several_methods else USUAL
        fields = [field for field in self.settings(trial) if field not in named]
        return settings(trial.config, fields)

    def searched_in_words(self, trial: Trial) -> str:
        """`distill 0.5, penalty_lr 0.1`: all that a name shows beside density and seed."""
        return settings(trial.config, self.settings(trial))

    def brief(self, trial: Trial) -> str:
        """Values alone, for a narrow place: `adaptive / 0.3 / 0.1 / 8`."""
        parts = [trial.method_name] if self.several_methods else []
        fields = ("density", *self.settings(trial))
        parts += [short(trial.config[field]) for field in fields if field in trial.config]
        parts += [str(trial.seed)] if self.several_seeds else []
        return " / ".join(parts) or trial.key[:8]

    def _joined(self, trial: Trial, fields: Sequence[str]) -> str:
        parts = [trial.method_name] if self.several_methods else []
        if named := settings(trial.config, fields):
            parts.append(named)
        parts += [f"seed {trial.seed}"] if self.several_seeds else []
        return ", ".join(parts) or "trial"


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for config in configs for key in config} - {"kind", "density"})
    values = {key: {repr(config[key]) for config in configs if key in config} for key in keys}
    return [key for key in keys if len(values[key]) > 1]

"""What a person sees while a campaign runs: one line per event, with the time that is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # it brings torch, and `lowrank status` tells the time by this module
    from orchestrator.launch import Launch

logger = logging.getLogger(__name__)

Print = Callable[[str], None]


@dataclass
class Progress:
    """Keeps count of models and steps, and guesses what is left from what has passed.

    Args:
        say: Receives finished lines.
        total_models: Dense references and trials, over all tasks.
    """

    say: Print
    total_models: int = 0
    started: float = field(default_factory=time.monotonic)
    finished: int = 0
    _reused: int = 0
    _share: dict[str, float] = field(default_factory=dict)
    """Part done of each model in training."""

    def line(self, text: str) -> None:
        self.say(f"[{clock(time.monotonic() - self.started)}] {text}")

    def step(self, who: str, metrics: dict[str, Any]) -> None:
        """A report from training."""
        total, step = metrics.get("total_steps"), metrics.get("step")
        if not total or step is None:
            return
        self._share[who] = step / total
        parts = [f"{who}: step {step}/{total} {metrics.get('phase', '')}"]
        if metrics.get("expected_density") is not None:
            parts.append(
                f"density {metrics['expected_density']:.3f} → {metrics['target_density']:.3f}"
            )
        if metrics.get("train_loss") is not None:
            parts.append(f"loss {metrics['train_loss']:.3f}")
        if metrics.get("validation") is not None:
            parts.append(f"validation {metrics['validation']:.4f}")
        self.line(" | ".join(parts) + self._left())

    def done(self, who: str, text: str, reused: bool = False) -> None:
        self._share.pop(who, None)
        self.finished += 1
        self._reused += reused
        self.line(f"{who}: {text} ({self.finished}/{self.total_models}){self._left()}")

    def forget(self, who: str) -> None:
        """It is over, and no model."""
        self._share.pop(who, None)

    def _left(self) -> str:
        # what came from an earlier run took no time and says nothing about the rest
        worked = self.finished - self._reused + sum(self._share.values())
        remaining = self.total_models - self.finished - sum(self._share.values())
        if worked < 0.3 or remaining <= 0:
            return ""
        seconds = (time.monotonic() - self.started) / worked * remaining
        return f" | about {clock(seconds)} left"


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def tune_callback(
    progress: Progress,
    names: dict[str, str],
    ended: Callable[[str, dict[str, Any]], None] = lambda key, result: None,
    over: Callable[[Launch, dict[str, Any], str | None], None] = lambda launch, result, death: None,
) -> Any:
    """A Tune callback that turns reports into lines.

    Args:
        progress: Where lines go.
        names: Trial key -> what to call it.
        ended: Hears the key and the last report of each model whose training is over.
        over: Hears of each trial that is over its launch, its last report, and what its process
            died of, if it did.
    """
    from ray.tune import Callback

    reported: set[str] = set()

    class Lines(Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            key = result.get("model", trial.config["launch"].key)
            who = names[key]
            if result.get("trunk"):
                progress.forget(who)
                if failure := result.get("failure"):
                    progress.line(f"{who}: FAILED, {failure}")
                ended(key, result)
                return
            if not result.get("ended"):
                progress.step(who, result)
                return
            reported.add(key)
            if result.get("failure"):
                progress.done(who, f"FAILED, {result['failure']}")
            elif stopped := result.get("stopped"):
                where = f"at rung {stopped['rung']:g}, step {stopped['step']}"
                progress.done(who, f"stopped {where}: {stopped['reason']}")
            elif result.get("unrecorded"):
                progress.done(who, "trained; MLflow does not answer, its run is written later")
            else:
                progress.done(who, f"finished, validation {result['quality']:.4f}")
            ended(key, result)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            launch: Launch = trial.config["launch"]
            # of a ladder, those models that had not ended
            models = [each["job"]["key"] for each in launch.then]
            left = [key for key in models if key not in reported]
            for key in left if models else [launch.key]:
                progress.done(names[key], "FAILED, its process ended unexpectedly")
                ended(key, {"failure": "its process ended unexpectedly"})
            over(launch, trial.last_result or {}, _death(trial))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            over(trial.config["launch"], trial.last_result or {}, None)

    return Lines()


def _death(trial: Any) -> str:
    """What a Tune trial's process died of, in one line."""
    error = trial.get_pickled_error() or trial.get_error()
    lines = str(error or "").splitlines()
    name = type(error).__name__ if isinstance(error, Exception) else "an error"
    return f"{name}: {lines[-1]}" if lines else "its process ended unexpectedly"

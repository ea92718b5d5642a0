"""How a campaign stands, read from MLflow and its folder while another process drives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from orchestrator.layout import Layout
from orchestrator.search import expected_trials
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.tracking.reading import LoggedRun, RunReader
from orchestrator.tracking.writer import (
    CURVE_KEYS,
    FINAL,
    STOPPED_STEP,
    STOPPED_TAG,
    TRAIN_SECONDS,
    VALIDATION,
)

TRAINING, WAITING, FINISHED, FAILED, STOPPED = (
    "training",
    "waiting",
    "finished",
    "failed",
    "stopped",
)
ENDED = {"FINISHED": FINISHED, "FAILED": FAILED, "KILLED": STOPPED}


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One model, as its MLflow run tells it."""

    name: str
    """With the task's before it."""
    state: str
    """training, waiting, finished, failed or stopped."""
    step: int = 0
    num_steps: int = 0
    density: float | None = None
    """Of the pruned matrices: expected while gates move, exact when it is finished."""
    validation: float | None = None
    """The task's metric, the last one known."""
    seconds: float | None = None
    """Of training, so far or in all."""
    reason: str = ""
    """Of a failure, or why it was stopped for good."""


@dataclass(frozen=True, kw_only=True)
class CampaignStatus:
    """A campaign at one moment."""

    name: str
    driver: str | None
    """The process that drives it, or None: nobody does."""
    models: list[ModelStatus]
    """Dense references and trials that have begun, in the order in which they were planned."""
    num_models: int
    """With those that later rounds will bring, if none fails."""
    over: bool
    """Whether all is done, choice and promotion too."""
    seconds_left: float | None
    """A guess from the trainings that are finished, or None: there are none yet."""
    data: frozenset[str] = frozenset()
    """Content hashes of the prepared data that its models read."""

    def count(self, state: str) -> int:
        return sum(model.state == state for model in self.models)


def campaign_status(spec: CampaignSpec, reader: RunReader, layout: Layout) -> CampaignStatus:
    """Look once; makes and changes nothing.

    Args:
        spec: The campaign, as it was started.
        reader: Of its experiment.
        layout: Of its folder; of the driver only its lock is seen, and that on the same file
            system.
    """
    runs, models = reader.runs(), []
    num_models, seconds_left, known = 0, 0.0, True
    for task in spec.tasks:
        own = [run for run in runs if run.params.get("task") == task.name]
        found = [_model(reader, run) for run in own]
        expected = max(len(found), 1 + _expected(spec, task))
        left = _seconds_left(found, expected, spec.resources_of(task).concurrent_trials)
        known, seconds_left = known and left is not None, seconds_left + (left or 0.0)
        models += found
        num_models += expected
    driver = layout.driver()
    if driver is None and (layout.mirror.is_bucket or layout.root.is_dir()):
        # its runs are open because it was killed
        models = [_without_driver(model) for model in models]
    parents = [run for run in runs if run.key.startswith("task:")]
    return CampaignStatus(
        name=spec.name,
        driver=driver,
        models=models,
        num_models=num_models,
        over=len(parents) == len(spec.tasks) and all(r.status == "FINISHED" for r in parents),
        seconds_left=seconds_left if known else None,
        data=frozenset(run.params["data_hash"] for run in runs if "data_hash" in run.params),
    )


def _expected(spec: CampaignSpec, task: AnyTask) -> int:
    """Trainings besides the dense one: trials, and the trunks of their ladders."""
    trials, ladder = expected_trials(spec, task), spec.search.ladder
    has_trunks = ladder is not None and ladder.by == "trunk"
    return trials + (trials // len(spec.search.density) if has_trunks else 0)


def _model(reader: RunReader, run: LoggedRun) -> ModelStatus:
    metrics = run.metrics
    steps = reader.last_step(run, CURVE_KEYS["train_loss"]) if run.status == "RUNNING" else None
    state = ENDED.get(run.status) or (WAITING if steps is None else TRAINING)
    total = _num_steps(run.params)
    early = STOPPED_TAG in run.tags and state == STOPPED
    told = STOPPED_TAG if early else "failure"
    steps = int(run.tags.get(STOPPED_STEP, 0)) if early else steps
    return ModelStatus(
        name=run.name,
        state=state,
        step=total if state == FINISHED else steps or 0,
        num_steps=total,
        density=metrics.get("density/prunable", metrics.get(CURVE_KEYS["expected_density"])),
        validation=_validation(metrics),
        seconds=metrics.get(TRAIN_SECONDS, metrics.get(CURVE_KEYS["seconds"])),
        reason=run.tags.get(told, "") if early or state == FAILED else "",
    )


def _without_driver(model: ModelStatus) -> ModelStatus:
    return replace(model, state=STOPPED) if model.state in (TRAINING, WAITING) else model


def _validation(metrics: Mapping[str, float]) -> float | None:
    """The curve has the task's metric alone, a finished model all that were computed."""
    names = [k for k in metrics if k.startswith(VALIDATION) and not k.endswith(FINAL)]
    return metrics.get(names[0] + FINAL, metrics[names[0]]) if names else None


def _num_steps(params: Mapping[str, Any]) -> int:
    """A dense run's params name no method; a small model from scratch trains for both."""
    if "ladder.steps" in params:
        return int(params["ladder.steps"])
    dense, method = int(params.get("dense.steps", 0)), int(params.get("method.steps", 0))
    if "method.kind" not in params:
        return dense
    return dense + method if params["method.kind"] == "from-scratch" else method


def _seconds_left(models: list[ModelStatus], expected: int, side_by_side: int) -> float | None:
    # one that was stopped without a reason was interrupted, and goes on
    ended = [
        m for m in models if m.state in (FINISHED, FAILED) or (m.state == STOPPED and m.reason)
    ]
    took = [m.seconds for m in models if m.state == FINISHED and m.seconds is not None]
    remaining = expected - len(ended)
    if not remaining:
        return 0.0
    if not took:
        return None
    begun = sum(m.step / m.num_steps for m in models if m.state == TRAINING and m.num_steps)
    return fmean(took) * (remaining - begun) / side_by_side

"""What a campaign costs besides its trainings: processes that start, reports, MLflow, the end."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan.figures import Range

REFERENCE_START_S = 6.0
"""Seconds until a process of the probe is ready where the constants below were measured. Nearly
all overhead is processes that import the same packages, so it is scaled by this."""
REPORT_S = 0.25
"""Half of the pause between two looks of Ray's controller (RAY_TRAIN_HEALTH_CHECK_INTERVAL_S)."""
SPREAD = 0.4
"""Of the scaled constants: what else runs on the machine weighs more here than in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """Seconds beside the trainings, on one machine."""

    begin_s: Range
    """Until the first trial may start: packages, data, MLflow's database, Ray."""
    search_s: Range
    """The start of Ray Tune's search, and the process of its first trial; later ones have that."""
    trial_s: Range
    """Around a training: its workers start and end, files are brought home, its run is written."""
    report_s: Range
    """A report of the workers to the trial, at each validation."""
    task_s: Range
    """The end of a task: choice, registry, gates, its part of the report."""
    start_s: float
    """Until a process of the probe was ready, which constants are scaled by."""
    measured: bool
    """Here by a campaign (`--with-ray`), or scaled from constants."""


def scaled(start_s: float) -> Overhead:
    """From the time that a process of the probe took to start."""
    factor = start_s / REFERENCE_START_S

    def scale(seconds: float) -> Range:
        return Range.around(factor * seconds, SPREAD)

    # read off the runs of a demo campaign (2 cores of an Intel Xeon, other work beside it: 15 min),
    # times what it took alone (9 min 42 s, docs/results/demo.md)
    return Overhead(
        begin_s=scale(20.0),
        search_s=scale(3.0),
        trial_s=scale(15.0),
        report_s=Range.around(REPORT_S, SPREAD),
        task_s=scale(8.0),
        start_s=start_s,
        measured=False,
    )

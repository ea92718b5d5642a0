"""A real campaign of a few steps, to measure what everything but training costs on a machine."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace

from orchestrator.campaign_records import CampaignResult
from orchestrator.data.prepare import PreparedData
from orchestrator.plan.figures import Range, at_density, total
from orchestrator.plan.overhead import REPORT_S, Overhead
from orchestrator.plan.plan import layout_of
from orchestrator.plan.probe import ProbeError, Say
from orchestrator.plan.profile import TaskProfile
from orchestrator.plan.work import SMALL, ModelWork, task_work
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.tracking import default_tracking_uri
from orchestrator.tracking.reading import LoggedRun, RunReader

STEPS = 8
"""Of each training: what is measured is what surrounds them."""
SPREAD = 0.2
"""Half-width of the ranges: the same rehearsal twice differs by a tenth to a fifth."""


def rehearse(
    spec: CampaignSpec,
    task: AnyTask,
    data: PreparedData,
    profile: TaskProfile,
    start_s: float,
    say: Say,
) -> Overhead:
    """Run one task with two short trials, one after the other, in a storage of its own.

    Args:
        spec: The campaign that is planned.
        task: One of its tasks.
        data: Prepared.
        profile: Of the task, whose exports and measurements are no overhead.
        start_s: Of a process of the probe.
        say: Hears of it.

    Raises:
        ProbeError: A trial failed.
    """
    from orchestrator.campaign import Campaign

    say(f"{task.name}: a campaign of a few steps with Ray and MLflow")
    storage = layout_of(spec).storage
    storage.mkdir(parents=True, exist_ok=True)
    # beside the campaign's own, for every machine of a cluster has to see it
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=storage) as folder:
        small = rehearsal_spec(spec, task, profile.world, folder)
        # the campaign will find its data prepared
        shutil.copytree(data.folder, layout_of(small).cache / data.content_hash)
        began = time.time()
        result = Campaign(small, lambda _: None).run()
        ended = time.time()
        runs = RunReader(default_tracking_uri(folder), small.name).runs()
    (found,) = result.tasks
    if found.failed or len(found.trials) < 2:
        reason = found.failed[0].reason if found.failed else "a trial is missing"
        raise ProbeError(f"the campaign of a few steps failed: {reason}")
    work = task_work(small, small.tasks[0])
    by_key = {run.key: run for run in runs}
    overhead = overhead_of(result, by_key, work.models, profile, began, ended)
    return replace(overhead, start_s=start_s)


def rehearsal_spec(spec: CampaignSpec, task: AnyTask, workers: int, folder: str) -> CampaignSpec:
    """The task with a few steps and two trials of its own method."""
    values = spec.model_dump(mode="json")
    short = task.model_dump(mode="json")
    share = task.dense.batch // spec.resources_of(task).workers
    short["dense"] |= {"steps": min(STEPS, task.dense.steps), "batch": share * workers}
    short["evaluate_every"] = 10 * STEPS
    short["resources"] |= {"workers": workers, "concurrent_trials": 1}
    short["method"].pop("steps", None)
    least = min(spec.search.density)
    others = [density for density in spec.search.density if density > least]
    return CampaignSpec.model_validate(
        values
        | {
            "name": "rehearsal",
            "storage": folder,
            "tracking": {"uri": None, "registry": None},
            "tasks": [short],
            "method": values["method"] | {"steps": min(STEPS, spec.method.steps)},
            # a density that is less strict than the least is in reach if that is
            "search": {"density": [least, min(others, default=(1 + least) / 2)]},
            "measure": values["measure"] | {"int8": False},
            "select": {"require": []},
            "promote": {"gates": []},
        }
    )


def overhead_of(
    result: CampaignResult,
    runs: dict[str, LoggedRun],
    works: list[ModelWork],
    profile: TaskProfile,
    began: float,
    ended: float,
) -> Overhead:
    """What is left of a rehearsal's time once its trainings, exports and measurements are taken.

    Args:
        result: Of one task with two trials, which ran one after the other.
        runs: Of its models, by key.
        works: Its models as they were counted: dense, then the trials.
        profile: Of the task.
        began: When it was started.
        ended: When it was over, on the clock of the runs.
    """
    task = result.tasks[0]
    dense, *trials = (runs[record.key] for record in (task.dense, *task.trials))
    first, second = sorted(trials, key=lambda run: run.ended or 0.0)
    records = {record.key: record for record in (task.dense, *task.trials)}
    spent = {}
    for work, record in zip(works, (task.dense, *task.trials), strict=True):
        costs = profile.of(work) if work.method else [profile.dense]
        cost = at_density(costs or [profile.dense], work.density)
        export = total((cost.export_s, cost.validation_s.get(SMALL, Range()), cost.test_s))
        spent[record.key] = records[record.key].train_seconds + export.value

    def end(run: LoggedRun) -> float:
        return run.ended if run.ended is not None else ended

    around = max(0.0, end(second) - end(first) - spent[second.key])
    search = end(dense) - dense.started - spent[dense.key] - around
    measuring = profile.timing_s.value * len(trials)
    return Overhead(
        begin_s=Range.around(max(0.0, dense.started - began), SPREAD),
        search_s=Range.around(max(0.0, search), SPREAD),
        trial_s=Range.around(around, SPREAD),
        report_s=Range.around(REPORT_S, SPREAD),
        task_s=Range.around(max(0.0, ended - end(second) - measuring), SPREAD),
        start_s=0.0,
        measured=True,
    )

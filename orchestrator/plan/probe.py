"""Probes a task: starts the processes that one trial has, or several trials side by side, and
gathers what they found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.data.prepare import PreparedData
from orchestrator.errors import CampaignError
from orchestrator.plan.disk import size_of
from orchestrator.plan.figures import JobCost, Range
from orchestrator.plan.profile import TaskProfile
from orchestrator.plan.trace import Trace, cost_of
from orchestrator.plan.work import ModelWork, TaskWork, settings
from orchestrator.plan.worker import FAILED, READY, TRACES, Request, command
from orchestrator.spec import CampaignSpec, Resources
from orchestrator.spec_tasks import AnyTask

MOST_SETTINGS = 8
"""Settings of a task that are probed, those with most steps; others count as the first of their
kind. Each takes as long as two trainings of `step_seconds` and what surrounds them."""
LOOK_EVERY_S = 0.2

Say = Callable[[str], None]


class ProbeError(CampaignError):
    """The short trainings of a probe failed."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to probe with."""

    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Processes of a probe."""

    world: int
    """Of one trial."""
    groups: int
    """Trials side by side."""


def this_machine() -> Machine:
    import torch

    return Machine(cpus=len(os.sched_getaffinity(0)), gpus=torch.cuda.device_count())


def crew_for(resources: Resources, most_at_once: int, machine: Machine) -> Crew:
    """As many processes as a trial has workers, and as many trials as will run side by side, as
    far as this machine has room for them.

    Raises:
        ProbeError: Workers train on GPUs, and this machine has none.
    """
    if resources.gpus_per_worker:
        if not machine.gpus:
            raise ProbeError(
                "workers train on GPUs and this machine has none: probe on one that has, with "
                "--save-profile FILE, and plan here with --profile FILE; or count only, --no-probe"
            )
        # one process per GPU: more would need the share of a GPU that Ray gives
        return Crew(world=min(resources.workers, machine.gpus), groups=1)
    room = max(1, int(machine.cpus // max(1.0, resources.cpus_per_worker)))
    world = min(resources.workers, room)
    return Crew(world=world, groups=max(1, min(most_at_once, room // world)))


def probe_task(
    spec: CampaignSpec,
    task: AnyTask,
    work: TaskWork,
    data: PreparedData,
    described: dict[str, Any],
    say: Say,
    step_seconds: float,
) -> tuple[TaskProfile, float]:
    """Train a few steps of everything that a task trains.

    Args:
        spec: The campaign.
        task: One of its tasks.
        work: Counted.
        data: Prepared.
        described: Goes into the profile.
        say: Hears of the progress.
        step_seconds: Of training steps, for each model that is probed.

    Returns:
        The profile, and the seconds that a process took to start.

    Raises:
        ProbeError: A training failed.
    """
    resources = spec.resources_of(task)
    most_at_once = min(work.side_by_side, max(map(len, work.rounds), default=1))
    crew = crew_for(resources, most_at_once, this_machine())
    share = task.dense.batch // resources.workers
    values = task.model_dump(mode="json")
    values["dense"]["batch"] = share * crew.world
    probed = probed_models(work)
    with tempfile.TemporaryDirectory(prefix="lowrank-plan-") as folder:
        request = Request(
            task=values,
            data=str(data.folder),
            dense_method=spec.method_of(task).model_dump(mode="json"),
            methods=[model.method for model in probed],
            seed=spec.seed,
            folder=folder,
            world=crew.world,
            group=0,
            groups=crew.groups,
            device="cuda" if resources.gpus_per_worker else "cpu",
            threads=max(1, int(resources.cpus_per_worker)),
            step_seconds=step_seconds,
        )
        names = ["dense", *(f"{model.setting} {model.density:g}" for model in probed)]
        traces, start_s = _run(request, names, say)
        costs = [_whole_group(cost_of(trace), crew, resources) for trace in traces]
        after = _After(spec, task, data, Path(folder))
        say("probing the measurements and MLflow's part")
        profile = TaskProfile(
            described=described,
            costs=costs,
            timing_s=after.timing_s(),
            int8_s=after.int8_s(),
            logged_bytes=after.logged_bytes(),
            world=crew.world,
            groups=crew.groups,
        )
    return profile, start_s


def probed_models(work: TaskWork) -> list[ModelWork]:
    """Of each setting the trials of least and greatest density."""
    found = []
    for _, trials in list(settings(work))[:MOST_SETTINGS]:
        ordered = sorted(trials, key=lambda trial: trial.density)
        found.append(ordered[0])
        if ordered[-1].density > ordered[0].density:
            found.append(ordered[-1])
    return found


def _whole_group(cost: JobCost, crew: Crew, resources: Resources) -> JobCost:
    """Evaluations are shared by all workers of a trial, of which the probe may have had fewer."""
    factor = crew.world / resources.workers
    values = {name: getattr(cost, name) for name in JobCost.__dataclass_fields__}
    values["validation_s"] = {k: v * factor for k, v in cost.validation_s.items()}
    values["test_s"] = cost.test_s * factor
    return JobCost(**values)


# --------------------------------------------------------------------------- processes


def _run(request: Request, names: list[str], say: Say) -> tuple[list[Trace], float]:
    folder = Path(request.folder)
    began, start_s, told = time.monotonic(), 0.0, 0
    with _processes(request) as processes:
        while True:
            if not start_s and (folder / f"{READY}0").exists():
                start_s = time.monotonic() - began
            lines = _lines(folder / TRACES)
            for name in names[told : len(lines)]:
                told += 1
                say(f"probed {name} ({told}/{len(names)})")
            codes = [process.poll() for process in processes]
            if any(codes):
                name = names[min(told, len(names) - 1)]
                raise ProbeError(f"the probe of {name} failed: {_reason(folder, codes)}")
            if all(code == 0 for code in codes):
                break
            time.sleep(LOOK_EVERY_S)
    traces = [TypeAdapter(Trace).validate_json(line) for line in _lines(folder / TRACES)]
    return traces, start_s


@contextmanager
def _processes(request: Request) -> Iterator[list[subprocess.Popen[bytes]]]:
    folder, found = Path(request.folder), list[subprocess.Popen[bytes]]()
    environment = os.environ | {
        # as Ray sets it for a worker
        "OMP_NUM_THREADS": str(request.threads),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    if request.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        for group in range(request.groups):
            path = folder / f"request-{group}.json"
            path.write_text(json.dumps({**vars(request), "group": group}), encoding="utf-8")
            for rank in range(request.world):
                with (folder / f"log-{len(found)}").open("wb") as log:
                    found.append(
                        subprocess.Popen(
                            command(path, rank), stdout=log, stderr=log, env=environment
                        )
                    )
        yield found
    finally:
        for process in found:
            if process.poll() is None:
                process.kill()
            process.wait()


def _lines(path: Path) -> list[str]:
    """Those that are complete."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _reason(folder: Path, codes: list[int | None]) -> str:
    if (folder / FAILED).exists():
        return (folder / FAILED).read_text(encoding="utf-8")
    number, code = next((n, code) for n, code in enumerate(codes) if code)
    if code == -signal.SIGKILL:
        return "its process was killed; is there memory enough for the workers?"
    text = (folder / f"log-{number}").read_text(encoding="utf-8", errors="replace").strip()
    return text.splitlines()[-1] if text else f"its process ended with status {code}"


# --------------------------------------------------------------------------- after training


@dataclass(frozen=True)
class _After:
    """What follows a training, on what the probe exported, in this process."""

    spec: CampaignSpec
    task: AnyTask
    data: PreparedData
    folder: Path

    @property
    def dense(self) -> str:
        return str(self.folder / "dense")

    @property
    def small(self) -> str:
        """Any of the trials."""
        trials = sorted(self.folder.glob("trial-0-*"))
        return str(trials[-1] if trials else self.dense)

    def timing_s(self) -> Range:
        from orchestrator.measure import measure_speed

        folder, measure = str(self.data.folder), self.spec.measure
        return _timed(lambda: measure_speed(self.dense, self.small, self.task, folder, measure))

    def int8_s(self) -> Range:
        from orchestrator.measure import measure_int8

        if not self.spec.measure.int8:
            return Range()
        folder, measure = str(self.data.folder), self.spec.measure
        return _timed(lambda: measure_int8(self.dense, self.small, self.task, folder, measure))

    def logged_bytes(self) -> int:
        """What MLflow adds to an export: code, description, example."""
        from orchestrator import flavor, serving

        path = self.folder / "logged"
        flavor.save_model(
            str(path),
            folder=Path(self.dense),
            signature=serving.signature(self.task.kind),
            input_example=serving.input_example(self.task.kind),
        )
        return size_of(path) - size_of(Path(self.dense))


def _timed(call: Callable[[], object]) -> Range:
    began = time.perf_counter()
    call()
    return Range.around(time.perf_counter() - began)

"""A process of a probe: trains a few real steps of each kind, and tells how long they took.

    python -m orchestrator.plan.worker REQUEST RANK

It runs what a worker of a campaign runs (`train_loop`), with its threads, its share of the batch
and, where a trial has several workers, in a group of processes; only Ray is not there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.export import WEIGHTS
from orchestrator.data.prepare import PreparedData
from orchestrator.job import Job
from orchestrator.plan.group import (
    ProbeWorkers,
    Tape,
    device_peak,
    forget_peak,
    group,
    peak,
)
from orchestrator.plan.trace import Evaluation, Trace
from orchestrator.plan.work import DENSE, FINETUNE, GATED, SCRATCH, setting_of, stretch_validations
from orchestrator.records import RECORD, ModelRecord
from orchestrator.tasks import TrainingTask, make_task
from orchestrator.tasks.labelled import EVALUATION_BATCH, LabelledTask
from orchestrator.tasks.language_modelling import EVALUATION_BATCH_TOKENS, LanguageModellingTask
from orchestrator.tasks.recurrent import RecurrentLanguageModellingTask
from orchestrator.train_loop import run_job_on

FEWEST, MOST = 16, 200
"""Steps of a probed training: enough for quartiles and to see every part of a schedule; more tell
no more than the machine's drift takes away."""
CHUNKS = 4
"""Batches that a worker evaluates of a split, at least, where there are so many: the first of them
is slow, and lengths differ."""
TRACES, FAILED, STEPS, READY = "traces.jsonl", "failed.txt", "steps", "ready-"
"""Files by which the processes speak to each other and to whoever started them."""
TYPICAL = 64
"""Steps of the campaign whose batches are looked at for their length."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a probe's processes are asked; JSON."""

    task: dict[str, Any]
    """With the batch of this group of workers."""
    data: str
    dense_method: dict[str, Any]
    methods: list[dict[str, Any]]
    seed: int
    folder: str
    """Receives `dense/`, `trial-N/`, and the traces of each rank 0."""
    world: int
    group: int
    groups: int
    """Trials that are side by side; the dense reference is trained by the first of them alone."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    step_seconds: float
    """Of steps, for each model."""


def main(path: str, rank: int) -> int:
    from lowrank.errors import LowRankError
    from orchestrator.errors import CampaignError

    request = Request(**json.loads(Path(path).read_text(encoding="utf-8")))
    folder = Path(request.folder)
    torch.set_num_threads(request.threads)
    device = torch.device("cuda", rank) if request.device == "cuda" else torch.device("cpu")
    meeting = folder / f"group-{request.group}"
    try:
        with group(request.world, rank, request.device, meeting):
            workers = ProbeWorkers(rank, request.world, device)
            for trace in probe(request, workers):
                if rank == 0 and request.group == 0:
                    with (folder / TRACES).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(trace)) + "\n")
    except (CampaignError, LowRankError) as error:
        (folder / FAILED).write_text(str(error), encoding="utf-8")
        return 1
    return 0


def probe(request: Request, workers: ProbeWorkers) -> Iterator[Trace]:
    """The dense reference, by the first group; then a trial of each method, by all at once."""
    folder = Path(request.folder)
    _note(folder / f"{READY}{request.group}", workers)
    if request.group == 0:
        for number in range(request.groups):
            _wait_for(folder / f"{READY}{number}")
        # the first training of a process loads the code of the model
        dense = _Probed(request, request.dense_method, None, folder / "dense")
        cold = dense.train(workers, FEWEST)
        trace = dense.train(workers, _wanted(request, workers, cold))
        cold_s = max(0.0, cold.setup_s - trace.setup_s)
        yield replace(trace, cold_s=cold_s)
        steps = _wanted(request, workers, trace)
        _note(folder / STEPS, workers, str(steps))
    else:
        _wait_for(folder / STEPS)
        steps, cold_s = int((folder / STEPS).read_text(encoding="utf-8")), 0.0
    for number, method in enumerate(request.methods):
        home = folder / f"trial-{request.group}-{number}"
        trial = _Probed(request, method, folder / "dense", home)
        yield replace(trial.train(workers, steps), cold_s=cold_s)


def _note(path: Path, workers: ProbeWorkers, text: str = "") -> None:
    """Let other groups go on once all of this one are here."""
    workers.gather(None)
    if workers.rank == 0:
        draft = path.with_suffix(".draft")
        draft.write_text(text, encoding="utf-8")
        draft.rename(path)


def _wait_for(path: Path) -> None:
    """Whoever started this process ends it if that does not come."""
    while not path.exists():
        time.sleep(0.05)


def _wanted(request: Request, workers: ProbeWorkers, trace: Trace) -> int:
    """Steps that take as long as asked for; what the first worker found, on all of them."""
    gaps = [b - a for a, b in zip(trace.beats, trace.beats[1:], strict=False)]
    step_s = sorted(gaps)[len(gaps) // 2] if gaps else request.step_seconds / FEWEST
    steps = round(request.step_seconds / max(step_s, 1e-6))
    return int(workers.gather(min(MOST, max(FEWEST, steps)))[0])


class _Probed:
    """One model that is trained for a few steps."""

    def __init__(
        self, request: Request, method: dict[str, Any], dense: Path | None, home: Path
    ) -> None:
        self.request, self.home = request, home
        common: dict[str, Any] = {"key": home.name, "data": request.data, "seed": request.seed}
        common["dense"] = None if dense is None else str(dense)
        self.real = Job(task=request.task, method=method, **common)
        self.common = common

    def train(self, workers: ProbeWorkers, steps: int) -> Trace:
        job = self._short(steps)
        method, every = job.method_spec, job.task_spec.evaluate_every
        task = make_task(job.task_spec, PreparedData.open(Path(job.data)), job.batch_seed)
        workers.tape = tape = Tape(home=self.home if workers.rank == 0 else None)
        workers.phases = phases = _phases(job)
        _record_evaluations(task, tape, workers.world)
        forget_peak(workers.device)
        began = time.perf_counter()
        record = run_job_on(task, job, workers)
        ended = time.perf_counter()
        gates = job.dense is not None and method.kind != SCRATCH
        whole = stretch_validations(method.gated_steps, every) + 1 if gates else 0
        return Trace(
            setting=DENSE if job.dense is None else setting_of(method),
            density=1.0 if job.dense is None else method.density,
            phases=phases,
            whole_validations=whole,
            began=began,
            trained=began + record.train_seconds,
            ended=ended,
            reporting_s=tape.reporting_s,
            beats=tape.beats,
            tokens=[_tokens(task, step, workers) for step in range(len(tape.beats))],
            typical_tokens=self._typical(task, workers),
            evaluations=tape.evaluations,
            model_bytes=tape.model_bytes,
            state_bytes=tape.state_bytes,
            **(_bytes(self.home, record) if workers.rank == 0 else _NO_BYTES),
            memory_bytes=max(workers.gather(peak())),
            device_bytes=max(workers.gather(device_peak(workers.device))),
        )

    def _short(self, steps: int) -> Job:
        """The same job with fewer steps: schedules are parts of the whole, so gates shut and
        components leave as they will."""
        task, method = dict(self.real.task), dict(self.real.method)
        real_dense, real = self.real.task["dense"]["steps"], method["steps"]
        if self.real.dense is None:
            task["dense"] = {**task["dense"], "steps": min(real_dense, steps)}
        elif method["kind"] == SCRATCH:
            task["dense"] = {**task["dense"], "steps": 0}
            method["steps"] = min(real + real_dense, steps)
        else:
            method["steps"] = min(real, steps)
        # one validation at the end of each stretch
        task["evaluate_every"] = 10 * MOST
        return Job(task=task, method=method, **self.common)

    def _typical(self, task: TrainingTask, workers: ProbeWorkers) -> dict[str, float]:
        """Of the batches that the campaign will see."""
        if not isinstance(task, LabelledTask):
            return {}
        found, first = {}, 0
        for phase, number in _phases(self.real):
            steps = range(first, first + number, max(1, number // TYPICAL))
            sizes = [_tokens(task, step, workers) for step in steps]
            found[phase] = sum(sizes) / len(sizes)
            first += number
        return found


def _phases(job: Job) -> list[tuple[str, int]]:
    method, dense = job.method_spec, job.task_spec.dense
    if job.dense is None:
        found = [(DENSE, dense.steps)]
    elif method.kind == SCRATCH:
        found = [(SCRATCH, method.steps + dense.steps)]
    else:
        found = [(GATED, method.gated_steps), (FINETUNE, method.finetune_steps)]
    return [(phase, number) for phase, number in found if number]


def _tokens(task: TrainingTask, step: int, workers: ProbeWorkers) -> int:
    return int(task.batch(step, workers.rank, workers.world)["input_ids"].numel())


def _record_evaluations(task: TrainingTask, tape: Tape, world: int) -> None:
    """Each evaluation goes onto the tape; of a large split a part of it stands for all."""
    whole = task.evaluate_shard

    def part(model: nn.Module, split: str, rank: int, world: int) -> Any:
        chunks = _chunks(task, split)
        parts = max(1, chunks // (world * CHUNKS))
        # of batches sorted by length, neither the shortest nor the longest of each row
        first = rank + world * (parts // 2)
        mine, every = range(first, chunks, world * parts), range(rank, chunks, world)
        began = time.perf_counter()
        values = whole(model, split, first, world * parts)
        share = len(mine) / len(every) if mine else 1.0
        tape.evaluations.append(
            Evaluation(split=split, began=began, ended=time.perf_counter(), share=share)
        )
        return values

    task.evaluate_shard = part  # type: ignore[method-assign]


def _chunks(task: TrainingTask, split: str) -> int:
    """Batches of an evaluation; 1 for what cannot be cut."""
    if isinstance(task, RecurrentLanguageModellingTask):
        return 1  # a lane is read from its start to its end, however many there are
    counts = task.data.info["splits"][split]
    if isinstance(task, LanguageModellingTask):
        per_batch = max(1, EVALUATION_BATCH_TOKENS // task.context)
        return max(1, -(-((counts["num_tokens"] - 1) // task.context) // per_batch))
    return max(1, -(-counts["num_examples"] // EVALUATION_BATCH))


def _bytes(home: Path, record: ModelRecord) -> dict[str, Any]:
    weights, text = (home / WEIGHTS).stat().st_size, (home / RECORD).stat().st_size
    rest = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    curve = [len(json.dumps(asdict(point), indent=1)) + 2 * _FIELDS for point in record.curve]
    point = sum(curve) / len(curve) if curve else 0.0
    return {
        "weights_bytes": weights,
        "export_bytes": rest - weights - text,
        "record_bytes": max(0, text - round(sum(curve))),
        "point_bytes": point,
    }


_FIELDS = 17
"""Lines of a point, each indented by two more within a record."""
_NO_BYTES = {"weights_bytes": 0, "export_bytes": 0, "record_bytes": 0, "point_bytes": 0.0}


def command(request: Path, rank: int) -> Sequence[str]:
    """What starts a process of the probe."""
    return [sys.executable, "-m", "orchestrator.plan.worker", str(request), str(rank)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))

"""One size: a campaign on a fresh MLflow server with a fresh PostgreSQL, and what it cost."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scale.replay import record
from benchmarks.scale.spec import write_spec
from benchmarks.scale.watch import Watched, plain, watch
from orchestrator.spec_io import load_spec
from tests.orchestrator.tracking.postgres import Postgres
from tests.orchestrator.tracking.server import Server

SERVER_WORKERS = 1
"""Processes of the MLflow server: with several, one that does not answer its parent within five
seconds is killed, and this machine is busy."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one size."""

    trials: int
    load: float
    """Of the machine before it began: its average over a minute."""
    stages: dict[str, float]
    """Seconds, in the order in which they come; together the wall time."""
    early_s: float
    late_s: float
    """From one trial's end to the next, means of the first and the last quarter."""
    start_mib: float
    """Of the driver when its dense reference was done; resident memory."""
    peak_mib: float
    database_mib: float
    artifacts_mib: float
    storage_mib: float
    report_mib: float
    lines: int
    """Of the campaign's output."""
    commands: dict[str, float]
    """Seconds of each command on the finished campaign."""
    command_mib: dict[str, float]
    """Their peak memory."""

    @property
    def wall_s(self) -> float:
        return sum(self.stages.values())


def measure(folder: Path, recording: Path, trials: int, side_by_side: int) -> Figures:
    """Run everything of one size, and remove what it left but its logs and its report."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    load = os.getloadavg()[0]
    database = Postgres()
    server = Server(folder / "server", database.uri, SERVER_WORKERS)
    try:
        database.start()
        server.start()
        spec = write_spec(folder, trials, server.uri, side_by_side, os.cpu_count() or 1)
        record(load_spec(spec), recording)
        campaign = watch(
            "benchmarks.scale.campaign", str(spec), str(recording), log=folder / "campaign.log"
        )
        finished = [each.text for each in campaign.lines if "finished, validation" in each.text]
        if len(finished) != trials + 1:
            raise SystemExit(f"{len(finished)} of {trials + 1} models finished: see {folder}")
        size = int(database.query("SELECT pg_database_size(current_database())"))
        commands, memory = _commands(folder, spec)
        return _figures(folder, trials, load, campaign, size / 2**20, commands, memory)
    finally:
        server.kill()
        database.remove()
        shutil.rmtree(folder / "server" / "artifacts", ignore_errors=True)


def _commands(folder: Path, spec: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Everything that a person asks of a finished campaign; what fails has no figure."""
    seconds, memory = dict[str, float](), dict[str, float]()
    for name, *more in (["validate"], ["report"], ["results", "--out", str(folder / "page.md")]):
        try:
            done = watch("jobs", name, str(spec), *more, log=folder / f"{name}.log")
        except SystemExit as failure:  # the campaign's own figures took an hour
            print(failure, flush=True)
            continue
        seconds[f"lowrank {name}"], memory[f"lowrank {name}"] = done.seconds, done.peak_mib
    again = watch("jobs", "run", str(spec), log=folder / "again.log")
    seconds["lowrank run, until nothing is missing"] = again.last("already finished")
    seconds["lowrank run, to its end"] = again.seconds
    memory["lowrank run, to its end"] = again.peak_mib
    browser = shutil.which("chromium")
    if browser is not None:
        page = f"file://{folder / 'storage' / load_spec(spec).name / 'report.html'}"
        picture = f"--screenshot={folder / 'report.png'}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,2000"]
        seconds["report in a browser"] = plain([browser, *flags, picture, page])
    return seconds, memory


def _figures(
    folder: Path,
    trials: int,
    load: float,
    campaign: Watched,
    database_mib: float,
    commands: dict[str, float],
    memory: dict[str, float],
) -> Figures:
    ends = [e.seconds for e in campaign.lines if re.search(r"density=\S+ .*finished, val", e.text)]
    quarter = max(1, (len(ends) - 1) // 4)
    dense_done = campaign.first("dense: finished")
    texts = [each.text for each in campaign.lines]
    chosen = next(index for index, text in enumerate(texts) if "Chosen:" in text)
    promoted = campaign.lines[chosen + 1].seconds  # whatever became of it
    marks = {
        "start, data, Ray": campaign.first("starting Ray"),
        "dense reference": dense_done,
        "opening runs": campaign.first("trainings to come"),
        "first trial's start": campaign.first("density="),
        "trials": campaign.last("finished, validation"),
        "collecting, speed": campaign.first("Chosen:"),
        "registry": promoted,
        "report, tags, end": campaign.seconds,
    }
    starts = [0.0, *list(marks.values())[:-1]]
    root = folder / "storage" / f"scale-{trials}"
    return Figures(
        trials=trials,
        load=load,
        stages={
            name: end - start for (name, end), start in zip(marks.items(), starts, strict=True)
        },
        early_s=(ends[quarter] - ends[0]) / quarter,
        late_s=(ends[-1] - ends[-1 - quarter]) / quarter,
        start_mib=campaign.peak_until(dense_done),
        peak_mib=campaign.peak_mib,
        database_mib=database_mib,
        artifacts_mib=_size_mib(folder / "server" / "artifacts"),
        storage_mib=_size_mib(root),
        report_mib=(root / "report.html").stat().st_size / 2**20,
        lines=len(campaign.lines),
        commands=commands,
        command_mib=memory,
    )


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20

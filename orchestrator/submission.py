"""A campaign as a job of a Ray cluster, through the cluster's job server (Ray's Jobs API).

What is sent is the resolved spec: every path absolute, every override applied, no password in it
(`spec_elsewhere`). It travels as the one file of the job's working folder, because whoever sees
the dashboard reads a job's command, metadata and environment.

Ray takes a submission id only once, also after the job has ended. So each start of a campaign has
an id of its own, NAME-1, NAME-2, ... The next one is handed out when the last has ended; of two
that ask at the same time Ray refuses one. The campaign's own lock stands behind that.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from orchestrator.errors import ClusterError, redact_uri
from orchestrator.job_server import ANSWER_S, JobServer
from orchestrator.machines import CAPACITY_ENV
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec

AWAY_S = 300
"""How long a log is followed without an answer: a head pod that is started anew takes minutes."""
STOP_S = 120
"""What a campaign has to close its runs before Ray kills it; Ray's own 3 s are not enough. It needs
some seconds, and half a minute more if the tracking server is away."""
STOP_ENV = "RAY_JOB_STOP_WAIT_TIME_S"
SPEC = "spec.yaml"
# the shell goes: what Ray signals, and whose exit code it reads, is the campaign
ENTRYPOINT = f"exec lowrank run {SPEC}"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a campaign on a cluster."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    exit_code: int | None
    started: datetime | None
    ended: datetime | None
    metadata: dict[str, str]

    @property
    def number(self) -> int:
        return int(self.id.rpartition("-")[2])

    @property
    def is_over(self) -> bool:
        return bool(JobStatus(self.status).is_terminal())

    @classmethod
    def of(cls, job: JobDetails) -> Attempt:
        return cls(
            id=job.submission_id,
            status=str(job.status),
            message=redact_uri(job.message or ""),
            exit_code=job.driver_exit_code,
            started=_moment(job.start_time),
            ended=_moment(job.end_time),
            metadata=dict(job.metadata or {}),
        )


def attempts(server: JobServer, campaign: str) -> list[Attempt]:
    """Every start of a campaign that the cluster remembers, in order."""
    mine = re.compile(re.escape(campaign) + r"-[1-9]\d*")
    found = [Attempt.of(job) for job in server.jobs() if mine.fullmatch(job.submission_id or "")]
    return sorted(found, key=lambda attempt: attempt.number)


def submit(
    server: JobServer, spec: CampaignSpec, options: Sequence[str] = ()
) -> tuple[Attempt, bool]:
    """Start a campaign, or find the start of it that is on its way.

    Args:
        server: Of the cluster.
        spec: As `load_spec(..., elsewhere=True)` returns it.
        options: Of `lowrank run`; they are seen by whoever sees the dashboard.

    Returns:
        The attempt, and whether it is new.

    Raises:
        ClusterError: A campaign of that name runs with another spec or into another folder.
    """
    described = {
        "campaign": spec.name,
        "spec": spec.digest(),
        "storage": redact_uri(spec.storage),
        "lowrank": version("lowrank-orchestrator"),
    }
    known = attempts(server, spec.name)
    if known and not known[-1].is_over:
        return _same(known[-1], described), False
    id = f"{spec.name}-{known[-1].number + 1 if known else 1}"
    environment = {STOP_ENV: str(STOP_S)}
    if CAPACITY_ENV in os.environ:
        environment[CAPACITY_ENV] = os.environ[CAPACITY_ENV]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, SPEC).write_text(dump_spec(spec), encoding="utf-8")
        is_new = server.submit(
            id,
            entrypoint=shlex.join([*ENTRYPOINT.split(), *options]),
            runtime_env={"working_dir": folder, "env_vars": environment},
            metadata=described,
        )
    attempt = Attempt.of(server.job(id))
    # if it is not new, somebody was faster, by less than the time between the two requests
    return (attempt, True) if is_new else (_same(attempt, described), False)


def _same(attempt: Attempt, described: dict[str, str]) -> Attempt:
    for what, name in (("spec", "another spec"), ("storage", "another storage folder")):
        if attempt.metadata.get(what, described[what]) != described[what]:
            other = f" ({attempt.metadata[what]})" if what == "storage" else ""
            raise ClusterError(
                f"campaign {described['campaign']!r} is on its way as {attempt.id} with {name}"
                f"{other}; stop it first, or give yours another name"
            )
    return attempt


def follow(server: JobServer, attempt: Attempt, write: Callable[[str], object]) -> Attempt:
    """Hand on what an attempt says until it ends; returns it as it ended.

    A connection that breaks is taken up again, and nothing is said twice.

    Raises:
        ClusterError: No answer for `AWAY_S` seconds; the campaign may go on.
    """
    text = _Followed(write)
    away_since: float | None = None
    while True:
        try:
            text.begin()
            asyncio.run(_tail(server, attempt.id, text))
        except (RuntimeError, aiohttp.ClientError, OSError):
            pass  # the question that follows tells why
        try:
            attempt = Attempt.of(server.job(attempt.id))
        except ClusterError as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > AWAY_S:
                raise ClusterError(f"{error}; {attempt.id} may go on all the same") from error
        else:
            away_since = None
            if attempt.is_over:
                return attempt
        time.sleep(1)


async def _tail(server: JobServer, id: str, text: _Followed) -> None:
    async for lines in server.tail(id):
        text.take(lines)


def stop(server: JobServer, attempt: Attempt) -> Attempt:
    """Ask an attempt to end, and wait until it has: SIGTERM, and SIGKILL after `STOP_S`.

    Raises:
        ClusterError: It goes on after that.
    """
    server.stop(attempt.id)
    deadline = time.monotonic() + STOP_S + ANSWER_S
    while not (attempt := Attempt.of(server.job(attempt.id))).is_over:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{attempt.id} was asked to stop and is {attempt.status} after "
                f"{STOP_S + ANSWER_S} s"
            )
        time.sleep(0.5)
    return attempt


class _Followed:
    """The text of a log that is read again from its beginning after each break."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._shown, self._read = write, 0, 0

    def begin(self) -> None:
        self._read = 0

    def take(self, text: str) -> None:
        new = text[max(0, self._shown - self._read) :]
        self._read += len(text)
        if new:
            self._shown += len(new)
            self._write(new)


def _moment(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)

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
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from orchestrator.cluster import CAPACITY_ENV
from orchestrator.errors import ClusterError, redact_uri
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec

ANSWER_S = 30
"""A head that is busy answers late; one that does not answer for so long is not there."""
AWAY_S = 300
"""How long a log is followed without an answer: a head pod that is started anew takes minutes."""
STOP_S = 120
"""What a campaign has to close its runs before Ray kills it; Ray's own 3 s are not enough. It needs
some seconds, and half a minute more if the tracking server is away."""
STOP_ENV = "RAY_JOB_STOP_WAIT_TIME_S"
SPEC = "spec.yaml"
# the shell goes: what Ray signals, and whose exit code it reads, is the campaign
ENTRYPOINT = f"exec lowrank run {SPEC}"

_CHATTY = [
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
]
"""Loggers of Ray that set their own level."""
_ADDRESS = re.compile(r"https?://[^/\s]+(/\S*)?", re.IGNORECASE)


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


class JobServer:
    """The job server of one cluster.

    Args:
        address: Of its dashboard: `http://HEAD:8265`, or `HEAD:8265`.

    Raises:
        ClusterError: It does not answer, is no job server, or wants a token.
    """

    def __init__(self, address: str) -> None:
        self.address = check_address(address)
        self.shown_address = redact_uri(self.address)
        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
        with self._explained(), _this_address(self.address):
            self._client = _Client(self.address)

    def attempts(self, campaign: str) -> list[Attempt]:
        """Every start of a campaign that the cluster remembers, in order."""
        with self._explained():
            jobs = self._client.list_jobs()
        mine = re.compile(re.escape(campaign) + r"-[1-9]\d*")
        found = [Attempt.of(job) for job in jobs if mine.fullmatch(job.submission_id or "")]
        return sorted(found, key=lambda attempt: attempt.number)

    def attempt(self, id: str) -> Attempt:
        with self._explained():
            return Attempt.of(self._client.get_job_info(id))

    def submit(self, spec: CampaignSpec, measure_again: bool = False) -> tuple[Attempt, bool]:
        """Start a campaign, or find the start of it that is on its way.

        Args:
            spec: As `load_spec(..., elsewhere=True)` returns it.
            measure_again: As in `lowrank run --measure-again`.

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
        known = self.attempts(spec.name)
        if known and not known[-1].is_over:
            return self._same(known[-1], described), False
        id = f"{spec.name}-{known[-1].number + 1 if known else 1}"
        environment = {STOP_ENV: str(STOP_S)}
        if CAPACITY_ENV in os.environ:
            environment[CAPACITY_ENV] = os.environ[CAPACITY_ENV]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, SPEC).write_text(dump_spec(spec), encoding="utf-8")
            try:
                with self._explained():
                    self._client.submit_job(
                        entrypoint=ENTRYPOINT + (" --measure-again" if measure_again else ""),
                        submission_id=id,
                        runtime_env={"working_dir": folder, "env_vars": environment},
                        metadata=described,
                    )
            except ClusterError as error:
                if "already exists" not in str(error):
                    raise
                # somebody else was faster, by less than the time between the two requests
                return self._same(self.attempt(id), described), False
        return self.attempt(id), True

    def _same(self, attempt: Attempt, described: dict[str, str]) -> Attempt:
        for what, name in (("spec", "another spec"), ("storage", "another storage folder")):
            if attempt.metadata.get(what, described[what]) != described[what]:
                other = f" ({attempt.metadata[what]})" if what == "storage" else ""
                raise ClusterError(
                    f"campaign {described['campaign']!r} is on its way as {attempt.id} with {name}"
                    f"{other}; stop it first, or give yours another name"
                )
        return attempt

    def log(self, attempt: Attempt) -> str:
        """What it has said so far."""
        with self._explained():
            return str(self._client.get_job_logs(attempt.id))

    def follow(self, attempt: Attempt, write: Callable[[str], object]) -> Attempt:
        """Hand on what an attempt says until it ends; returns it as it ended.

        A connection that breaks is taken up again, and nothing is said twice.

        Raises:
            ClusterError: No answer for `AWAY_S` seconds; the campaign may go on.
        """
        text = _Followed(write)
        heard = time.monotonic()
        while True:
            try:
                text.begin()
                asyncio.run(self._tail(attempt.id, text))
            except (RuntimeError, aiohttp.ClientError, OSError):
                pass  # the question that follows tells why
            try:
                attempt = self.attempt(attempt.id)
            except ClusterError as error:
                if time.monotonic() - heard > AWAY_S:
                    raise ClusterError(f"{error}; {attempt.id} may go on all the same") from error
            else:
                heard = time.monotonic()
                if attempt.is_over:
                    return attempt
            time.sleep(1)

    async def _tail(self, id: str, text: _Followed) -> None:
        async for lines in self._client.tail_job_logs(id):
            text.take(lines)

    def stop(self, attempt: Attempt) -> Attempt:
        """Ask an attempt to end, and wait until it has: SIGTERM, and SIGKILL after `STOP_S`.

        Raises:
            ClusterError: It goes on after that.
        """
        with self._explained():
            self._client.stop_job(attempt.id)
        deadline = time.monotonic() + STOP_S + ANSWER_S
        while not (attempt := self.attempt(attempt.id)).is_over:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{attempt.id} was asked to stop and is {attempt.status} after "
                    f"{STOP_S + ANSWER_S} s"
                )
            time.sleep(0.5)
        return attempt

    def resources(self) -> dict[str, float]:
        """What the nodes that are there now have in all."""
        with self._explained(), _this_address(self.address):
            nodes = list_nodes(self.address, limit=10_000, timeout=ANSWER_S)
        total: dict[str, float] = {}
        for node in nodes:
            if node.state == "ALIVE":
                for name, amount in node.resources_total.items():
                    if isinstance(amount, int | float):  # memory comes as text
                        total[name] = total.get(name, 0.0) + amount
        return total

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Ray's and the network's errors as ours, with the address and without its secrets."""
        at = f"the job server at {self.shown_address}"
        try:
            yield
        except AuthenticationError:
            raise ClusterError(
                f"{at} wants a token, and none or another one was sent: set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
            ) from None
        except requests.ReadTimeout:
            raise ClusterError(f"{at} does not answer within {ANSWER_S} s") from None
        except (ConnectionError, requests.ConnectionError):
            raise ClusterError(
                f"{at} does not answer; is the head up, and its port open to this machine?"
            ) from None
        except (KeyError, requests.JSONDecodeError):
            raise ClusterError(
                f"what answers at {self.shown_address} is no Ray job server; --address must be "
                "that of the cluster's dashboard, http://HEAD:8265"
            ) from None
        except (RuntimeError, requests.RequestException, RayStateApiException) as error:
            # Ray sends its traceback; what happened stands in the last line
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise ClusterError(f"{at} refuses: {redact_uri(lines[-1].strip())}") from None


class _Client(JobSubmissionClient):
    """Ray's client waits for ever for an answer."""

    def _do_request(self, method: str, endpoint: str, **rest: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_S, **rest})


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


def check_address(address: str) -> str:
    """The address of a dashboard, with its scheme.

    Raises:
        ClusterError: It is none.
    """
    whole = address.strip()
    if "://" not in whole:
        whole = f"http://{whole}"
    if not _ADDRESS.fullmatch(whole):
        raise ClusterError(
            "--address must be that of the cluster's dashboard, http://HEAD:8265, got "
            f"{redact_uri(address)}"
        )
    return whole.rstrip("/")


@contextmanager
def _this_address(address: str) -> Iterator[None]:
    """Ray prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to what it is told."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _moment(milliseconds: int | None) -> datetime | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC)

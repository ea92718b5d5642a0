"""The job server of a Ray cluster (Ray's Jobs API), with its errors in words.

Ray's client waits for ever for an answer, prefers its environment to the address that it is given,
and hands on tracebacks of the server; here it does not.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from orchestrator.errors import ClusterError, redact_uri

ANSWER_S = 30
"""A head that is busy answers late; one that does not answer for so long is not there."""

_CHATTY = [
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
]
"""Loggers of Ray that set their own level."""
_ADDRESS = re.compile(r"https?://[^/\s]+(/\S*)?", re.IGNORECASE)


class JobServer:
    """The job server of one cluster.

    Args:
        address: Of its dashboard: `http://HEAD:8265`, or `HEAD:8265`.

    Raises:
        ClusterError: It does not answer, is no job server, or wants a token. Any method may.
    """

    def __init__(self, address: str) -> None:
        self.address = check_address(address)
        self.shown_address = redact_uri(self.address)
        for chatty in _CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
        with self._explained(), _this_address(self.address):
            self._client = _Client(self.address)

    def jobs(self) -> list[JobDetails]:
        """All that the cluster remembers."""
        with self._explained():
            return list(self._client.list_jobs())

    def job(self, id: str) -> JobDetails:
        with self._explained():
            return self._client.get_job_info(id)

    def submit(self, id: str, **job: Any) -> bool:
        """Start a job; False if there is, or was, one of this id."""
        try:
            with self._explained():
                self._client.submit_job(submission_id=id, **job)
        except ClusterError as error:
            if "already exists" not in str(error):
                raise
            return False
        return True

    def stop(self, id: str) -> None:
        """Ask a job to end."""
        with self._explained():
            self._client.stop_job(id)

    def log(self, id: str) -> str:
        """What a job has said so far."""
        with self._explained():
            return str(self._client.get_job_logs(id))

    def tail(self, id: str) -> AsyncIterator[str]:
        """What a job says, from the beginning until it ends or the connection breaks."""
        lines: AsyncIterator[str] = self._client.tail_job_logs(id)
        return lines

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
            lines = str(error).rstrip(". \n").splitlines() or [type(error).__name__]
            raise ClusterError(f"{at} refuses: {redact_uri(lines[-1].strip())}") from None


class _Client(JobSubmissionClient):
    """Ray's client waits for ever for an answer."""

    def _do_request(self, method: str, endpoint: str, **rest: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_S, **rest})


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

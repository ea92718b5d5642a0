"""Addresses, and servers that do not answer as they should; a real one is in tests/integration."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator import job_server
from orchestrator.errors import ClusterError
from orchestrator.job_server import JobServer, check_address


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("http://head:8265", "http://head:8265"),
        ("https://ray.example/cluster/", "https://ray.example/cluster"),
        ("head:8265", "http://head:8265"),
        (" 10.0.0.1:8265 ", "http://10.0.0.1:8265"),
    ],
)
def test_an_address_is_that_of_the_dashboard(given: str, whole: str):
    assert check_address(given) == whole


@pytest.mark.parametrize("given", ["ray://head:10001", "", "http://", "ftp://me:hunter2@head"])
def test_any_other_is_refused(given: str):
    with pytest.raises(ClusterError, match=r"that of the cluster's dashboard") as caught:
        check_address(given)
    assert "hunter2" not in str(caught.value)


class _Answers(BaseHTTPRequestHandler):
    """A web server of somebody else."""

    status, body = 200, b"<html>hello</html>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def elsewhere() -> Iterator[tuple[type[_Answers], str]]:
    handler = type("_Answers", (_Answers,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>hello</html>", "is no Ray job server"),
        (200, b'{"version": "4"}', "is no Ray job server"),
        (200, b'{"ray_version": "1.0.0"}', "refuses: Ray version 1.0.0 is running"),
        (404, b"nothing here", "refuses: Version check returned 404"),
        (502, b"bad gateway", "refuses: 502 Server Error"),
        (401, b"no token", "wants a token"),
        (403, b"wrong token", "wants a token.*RAY_AUTH_MODE=token"),
    ],
)
def test_what_answers_must_be_a_job_server_that_lets_one_in(elsewhere, status, body, message):
    handler, address = elsewhere
    handler.status, handler.body = status, body
    with pytest.raises(ClusterError, match=message) as caught:
        JobServer(address)
    assert address in str(caught.value)


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ClusterError, match="does not answer; is the head up"):
        JobServer(address)
    monkeypatch.setattr(job_server, "ANSWER_S", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(ClusterError, match=r"does not answer within 0\.2 s"):
            JobServer(f"http://me:hunter2@127.0.0.1:{deaf.getsockname()[1]}")


def test_the_address_that_was_given_counts(elsewhere, monkeypatch: pytest.MonkeyPatch):
    """Ray itself would ask the one of its environment."""
    _, address = elsewhere
    monkeypatch.setenv("RAY_ADDRESS", "http://other:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://another:1")
    with pytest.raises(ClusterError, match=address):
        JobServer(address)
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://another:1"


TRACEBACK = b"""Traceback (most recent call last):
  File "job_head.py", line 1, in submit_job
ValueError: Job with submission_id small-1 already exists. Please use a different submission_id.
"""


def test_an_id_that_was_taken_is_no_error_and_others_are_told_by_their_last_line(elsewhere):
    handler, address = elsewhere
    handler.body = b'{"ray_version": "2.60.0"}'
    server = JobServer(address)

    def do_POST(self: _Answers) -> None:
        self.do_GET()

    handler.do_POST = do_POST
    handler.status, handler.body = 500, TRACEBACK
    assert server.submit("small-1", entrypoint="true") is False
    handler.body = TRACEBACK.replace(b"already exists", b"is odd")
    with pytest.raises(ClusterError, match="refuses: ValueError: Job with submission_id small-1"):
        server.submit("small-1", entrypoint="true")

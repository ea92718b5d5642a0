"""What `lowrank submit` and `lowrank job` do and say. Returns the exit code."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.commands import say
from orchestrator.errors import CampaignError
from orchestrator.machines import CAPACITY_ENV, capacity
from orchestrator.room import check_fits
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import load_spec

if TYPE_CHECKING:
    from orchestrator.job_server import JobServer
    from orchestrator.submission import Attempt

STOPPED = 130
"""As a campaign that is interrupted exits."""
NOT_FOUND = 127
"""The shell's: there is no such command."""
LAST_LINES = 10


def submit(
    path: Path,
    overrides: Sequence[str],
    address: str | None,
    follow: bool = True,
    options: Sequence[str] = (),
) -> int:
    """Send a campaign to a cluster, unless it runs there, and follow it."""
    from orchestrator import submission

    spec = load_spec(path, overrides, elsewhere=True)
    server = _server(address)
    _check_resources(server, spec)
    attempt, is_new = submission.submit(server, spec, options)
    said = "sent" if is_new else "nothing was sent, it is on its way already"
    say(f"campaign {spec.name!r}: {said}, as {attempt.id} at {server.shown_address}")
    if spec.tracking.uri is None:
        say(
            "note: tracking.uri is not set, so runs go to SQLite in the storage folder; that needs "
            "a file system with locks, and an MLflow server does better with several nodes"
        )
    for what in ("status", "stop"):
        say(f"  {_again(f'job {what}', path, overrides, server)}")
    if not follow:
        return 0
    say("its log; Ctrl-C leaves it running")
    return _follow(server, attempt)


def status(path: Path, overrides: Sequence[str], address: str | None) -> int:
    """Every start of the campaign, and what the last one says."""
    spec, server, attempts = _known(path, overrides, address)
    say(f"campaign {spec.name!r} at {server.shown_address}")
    width = max(len(attempt.id) for attempt in attempts)
    for attempt in attempts:
        say(f"  {attempt.id:<{width}}  {_in_words(attempt)}")
    last = attempts[-1]
    if last.status == "PENDING":
        say(last.message)
        return 0
    lines = server.log(last.id).splitlines()[-LAST_LINES:]
    say("\n".join(["", *lines]))
    _explain(last)
    return 0


def logs(path: Path, overrides: Sequence[str], address: str | None, follow: bool) -> int:
    """What the last start says."""
    _, server, attempts = _known(path, overrides, address)
    if follow:
        return _follow(server, attempts[-1])
    _write(server.log(attempts[-1].id))
    return 0


def stop(path: Path, overrides: Sequence[str], address: str | None) -> int:
    """End the campaign cleanly, and wait for that."""
    from orchestrator import submission

    spec, server, attempts = _known(path, overrides, address)
    attempt = attempts[-1]
    if attempt.is_over:
        say(f"campaign {spec.name!r} does not run: {attempt.id} {_in_words(attempt)}")
        return 0
    say(f"{attempt.id} closes its runs; after {submission.STOP_S} s it would be killed")
    attempt = submission.stop(server, attempt)
    say(f"{attempt.id} {_in_words(attempt)}; to go on:")
    say(f"  {_again('submit', path, overrides, server)}")
    return 0


def _server(address: str | None) -> JobServer:
    from orchestrator.job_server import JobServer

    if not address:
        raise CampaignError(
            "--address is needed, or RAY_API_SERVER_ADDRESS: the cluster's dashboard, "
            "http://HEAD:8265"
        )
    return JobServer(address)


def _known(
    path: Path, overrides: Sequence[str], address: str | None
) -> tuple[CampaignSpec, JobServer, list[Attempt]]:
    from orchestrator.submission import attempts

    spec = load_spec(path, overrides, elsewhere=True)
    server = _server(address)
    found = attempts(server, spec.name)
    if not found:
        raise CampaignError(
            f"campaign {spec.name!r} was never submitted to {server.shown_address}, or its head "
            f"was started anew since: {_again('submit', path, overrides, server)}"
        )
    return spec, server, found


def _check_resources(server: JobServer, spec: CampaignSpec) -> None:
    """The campaign asks again when it starts; here the person hears it before anything is sent."""
    there = capacity(server.resources())
    for task in spec.tasks:
        try:
            check_fits(spec.resources_of(task), there, task.name)
        except CampaignError as error:
            grow = f'; if it may grow, say how far: {CAPACITY_ENV}=\'{{"CPU": 64, "GPU": 8}}\''
            raise CampaignError(f"{error}{'' if CAPACITY_ENV in os.environ else grow}") from None


def _follow(server: JobServer, attempt: Attempt) -> int:
    from orchestrator.submission import follow

    try:
        attempt = follow(server, attempt, _write)
    except KeyboardInterrupt:
        say(f"\n{attempt.id} goes on without you; lowrank job logs -f follows it again")
        return STOPPED
    say(f"{attempt.id} {_in_words(attempt)}")
    _explain(attempt)
    if attempt.status == "STOPPED":
        return STOPPED
    return attempt.exit_code or (0 if attempt.status == "SUCCEEDED" else 1)


def _explain(attempt: Attempt) -> None:
    """Why it failed, where the log does not tell."""
    if attempt.status != "FAILED":
        return
    if attempt.exit_code == NOT_FOUND:
        say("the cluster's image has no command lowrank: build it from jobs/cluster/Dockerfile")
    elif attempt.exit_code is None and attempt.message:
        say(attempt.message)


def _in_words(attempt: Attempt) -> str:
    words = attempt.status.lower()
    if attempt.status == "FAILED" and attempt.exit_code is not None:
        words += f" with exit code {attempt.exit_code}"
    if attempt.started is None:
        return words
    lasted = (attempt.ended or datetime.now(UTC)) - attempt.started
    spent = timedelta(seconds=round(lasted.total_seconds()))
    since = attempt.started.astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"{words} {'after' if attempt.ended else 'for'} {spent}, started {since}"


def _again(command: str, path: Path, overrides: Sequence[str], server: JobServer) -> str:
    """The command to type next."""
    words = ["lowrank", *command.split(), str(path)]
    for override in overrides:
        words += ["--set", override]
    return f"{shlex.join(words)} --address {server.shown_address}"


def _write(text: str) -> None:
    """As it comes: a log has its own line ends."""
    sys.stdout.write(text)
    sys.stdout.flush()

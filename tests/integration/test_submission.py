"""A campaign on a cluster by Ray's Jobs API: submitted, followed, stopped, sent again, and finished
on other nodes than it began on."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.layout import Layout
from orchestrator.machines import CAPACITY_ENV
from orchestrator.room import DRIVER
from orchestrator.tracking import default_tracking_uri
from tests.integration.conftest import Ran, environment, wait_for, without_packages, write_spec
from tests.integration.nodes import START, free_ports, node

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FASTER = """
from jobs.__main__ import main
from orchestrator import submission

submission.attempts = lambda *_: []
main()
"""
ONE_TRIAL = ("--set", "search.density=[0.5]")


@dataclass(frozen=True)
class Head:
    """A head node of its own, and how to reach it."""

    address: str
    """Of its dashboard."""
    gcs: str
    """Where other nodes join."""
    token: str

    @property
    def environment(self) -> dict[str, str]:
        return environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def lowrank(self, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "jobs", *words, token=token)

    def run(self, *words: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words, "--address", self.address],
            capture_output=True,
            text=True,
            env=self.environment if token else environment(),
            timeout=540,
            check=False,
        )

    def start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        with log.open("w") as out:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "jobs", *words, "--address", self.address],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                # a test run in a shell's background inherits an ignored SIGINT
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Ports, folder and token that no other Ray of this machine has; no CPU, as on a cluster."""
    # a short path: that of a socket may have 107 characters
    folder = tempfile.mkdtemp(prefix="ray-")
    ports = free_ports(5)
    found = Head(f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", secrets.token_hex(16))
    command = [*START, "--head", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    command += [f"--dashboard-port={ports[0]}", "--dashboard-host=127.0.0.1", f"--port={ports[1]}"]
    command += [f"--ray-client-server-port={ports[2]}"]
    command += [f"--dashboard-agent-listen-port={ports[3]}", f"--metrics-export-port={ports[4]}"]
    command += [f'--resources={{"{DRIVER}": 8}}', f"--temp-dir={folder}"]
    # a job calls `lowrank` by its name, as it does in an image
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    log = Path(folder, "head.txt")
    try:
        with node(command, log, found.environment | {"PATH": path}):
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _worker_node(head: Head, number: int, logs: Path) -> Iterator[psutil.Process]:
    """With one CPU, and an address and a folder of its own: one that shares the head's unpacks a
    job's files over those that the job's driver stands in."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [*START, f"--address={head.gcs}", f"--node-ip-address=127.0.0.{number}"]
        command += ["--num-cpus=1", f"--temp-dir={folder}"]
        with node(command, logs / f"node{number}.txt", head.environment) as machine:
            yield machine


def _trains(machine: psutil.Process) -> bool:
    """Whether a worker of a training is on the node."""
    for process in machine.children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                return True
    return False


def _power_off(machine: psutil.Process) -> None:
    """All its processes at once."""
    for process in (machine, *machine.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _statuses(storage: Path) -> list[str]:
    client = MlflowClient(default_tracking_uri(str(storage)))
    (experiment,) = [e for e in client.search_experiments() if e.name == "sent"]
    return [r.info.status for r in client.search_runs([experiment.experiment_id])]


def _letters(storage: Path, name: str) -> TaskResult:
    result = CampaignResult.load(Layout(storage, name).result)
    return next(task for task in result.tasks if task.task == "letters")


def _models(task: TaskResult) -> dict[str, object]:
    """Each model's bits and figures by its key."""
    records = (task.dense, *task.trials)
    return {r.key: (r.export_sha256, r.validation, r.test, r.size) for r in records}


@pytest.mark.long
def test_a_submitted_campaign_is_followed_stopped_and_finished(
    head: Head, tmp_path: Path, campaign: Ran
) -> None:
    """On three nodes; two of them are lost while it trains, and another one comes."""
    path, storage = write_spec(tmp_path, "sent")
    without_packages(path)
    spec = (str(path), *ONE_TRIAL)
    with ExitStack() as stack:
        nodes = [stack.enter_context(_worker_node(head, number, tmp_path)) for number in (3, 4)]
        _stopped_halfway(head, spec, storage, tmp_path / "first.txt")

        log, started = tmp_path / "second.txt", Layout(storage, "sent").root / "hung"
        shutil.rmtree(started)
        second = head.start(log, "submit", *spec)
        nodes.append(stack.enter_context(_worker_node(head, 5, tmp_path)))
        # the workers' watchdogs are there: the training begins
        while len(list(started.glob("*/worker*.txt"))) < 2:
            assert second.poll() is None, log.read_text()
            time.sleep(0.02)
        busy = [node for node in nodes if _trains(node)]
        assert len(busy) == 2
        _power_off(busy[0])
        # without the one that was idle, two workers fit again only when another node comes
        (idle,) = [node for node in nodes if node not in busy]
        _power_off(idle)
        late = stack.enter_context(_worker_node(head, 6, tmp_path))
        while not _trains(late):
            assert second.poll() is None, log.read_text()
            time.sleep(0.1)
        assert second.wait(300) == 0, log.read_text()
    assert "sent, as sent-2 at" in log.read_text()
    assert log.read_text().count("already finished") == 1
    assert _statuses(storage) == ["FINISHED"] * 3, "the task, its dense reference and one trial"

    status = head.lowrank("job", "status", *spec)
    assert "sent-1  stopped after" in status.stdout
    assert "sent-2  succeeded after" in status.stdout
    assert "champion" in status.stdout

    # as where nothing happened
    task, undisturbed = _letters(storage, "sent"), _letters(campaign.storage, "tiny")
    assert _models(task) == _models(undisturbed)
    assert task.choice.key == undisturbed.choice.key
    assert [each and each.promoted for each in (task.promotion, undisturbed.promotion)] == [
        True
    ] * 2


def _stopped_halfway(head: Head, spec: Sequence[str], storage: Path, log: Path) -> None:
    """One that was sent, left alone, sent in vain again, and stopped in its last training."""
    following = head.start(log, "submit", *spec)
    wait_for("dense: finished", log, following)
    following.send_signal(signal.SIGINT)
    assert following.wait(60) == 130, log.read_text()
    assert "sent-1 goes on without you" in log.read_text()
    following = head.start(log, "job", "logs", "-f", *spec)

    again = head.lowrank("submit", *spec, "--no-follow")
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing was sent, it is on its way already, as sent-1" in again.stdout

    # two that ask at the same time: this one has looked before the other was there
    raced = head.run("-c", FASTER, "submit", *spec, "--no-follow")
    assert "nothing was sent, it is on its way already, as sent-1" in raced.stdout, raced.stderr

    stopped = head.lowrank("job", "stop", *spec)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert "sent-1 stopped after" in stopped.stdout
    assert following.wait(60) == 130
    # the campaign itself had the time to end, and has closed its runs
    assert "the same command goes on from there" in log.read_text()
    statuses = _statuses(storage)
    assert "KILLED" in statuses
    assert "RUNNING" not in statuses


def test_what_cannot_run_is_refused_before_it_is_sent(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CAPACITY_ENV, '{"CPU": 2}')
    path, storage = write_spec(tmp_path, "refused")
    stranger = head.lowrank("submit", str(path), token=False)
    assert (stranger.returncode, stranger.stdout) == (1, "")
    assert "wants a token" in stranger.stderr
    large = head.lowrank("submit", str(path), "--set", "resources.workers=8")
    assert (large.returncode, large.stdout) == (1, "")
    assert "one trial needs 8 CPU, the cluster has 2 (8 workers)" in large.stderr
    unknown = head.lowrank("job", "stop", str(path))
    assert unknown.returncode == 1
    assert "campaign 'refused' was never submitted to" in unknown.stderr
    # an absolute path may be one of the cluster: whether it is there the head finds out
    absent = "tasks.letters.data={source: files, train: /absent/train.txt}"
    failed = head.lowrank("submit", str(path), "--set", absent)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "file not found: /absent/train.txt" in failed.stdout
    assert "refused-1 failed with exit code 2 after" in failed.stdout
    assert not storage.exists()


def test_a_pod_that_ends_tells_ray_and_waits_until_its_node_is_empty(
    head: Head, tmp_path: Path
) -> None:
    log = tmp_path / "worker.txt"
    command = [*START, f"--address={head.gcs}", "--node-ip-address=127.0.0.2", "--num-cpus=1"]
    with node(command, log, head.environment) as worker:
        assert "raylet" in [each.name() for each in worker.children()]
        drain = [sys.executable, "-m", "orchestrator.drain", "--seconds", "60"]
        done = subprocess.run(
            [*drain, "--node-ip", "127.0.0.2"],
            capture_output=True,
            text=True,
            env=head.environment | {"RAY_ADDRESS": head.gcs},
            timeout=120,
            check=True,
        )
        assert "no node of the cluster" not in done.stderr
        # an empty node has ended, long before its time was over
        children = worker.children()
        running = [each.name() for each in children if each.status() != psutil.STATUS_ZOMBIE]
        assert "raylet" not in running

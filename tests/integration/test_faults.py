"""A worker hangs, and one is killed, in the middle of a training: Ray starts the group again, which
goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.watchdog import hung
from tests.integration.conftest import compression, environment, same_weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ON_TWO_WORKERS = """
import json, sys
from orchestrator.cluster import ray_session
with ray_session():
    import os, ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # or what frees a killed controller's machines would not find this Ray among several
    address = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert address == ray.get_runtime_context().gcs_address
    assert "RAY_ADDRESS" not in os.environ

    def work(config):
        import os, signal, time
        from pathlib import Path
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
        with Watchdog(config["limit_s"], Path(config["hung"]) / f"worker{rank}.txt") as watchdog:
            run_job(Job(**config["job"]), Mortal(watchdog))

    for config in json.loads(sys.argv[1]):
        result = TorchTrainer(
            work, train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(
                name=config["name"], storage_path=config["storage"],
                failure_config=FailureConfig(max_failures=2, controller_failure_limit=1)),
        ).fit()
        result.checkpoint.to_directory(config["export"])
"""


def test_hung_and_killed_workers_cost_the_steps_since_the_last_state(tmp_path: Path) -> None:
    job = compression(tmp_path, evaluate_every=8, steps=32)
    runs = [
        {
            "name": name,
            "job": job | {"snapshots": str(tmp_path / f"{name}-states")},
            "seen": str(tmp_path / f"{name}.txt"),
            "hang_at": hang_at,
            "die_at": die_at,
            "hung": str(tmp_path / f"{name}-hung"),
            # a step takes milliseconds; the start of a group on a busy machine, seconds
            "limit_s": limit_s,
            "storage": str(tmp_path / "ray"),
            "export": str(tmp_path / f"{name}-export"),
        }
        for name, hang_at, die_at, limit_s in (
            ("undisturbed", None, None, 1000),
            ("disturbed", 16, 24, 25),
        )
    ]
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_WORKERS, json.dumps(runs)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "undisturbed.txt").read_text().split() == ["8", "16", "24", "32"]
    # each time it goes on from the state before: of 8, and with its gates gone already of 16
    assert (tmp_path / "disturbed.txt").read_text().split() == ["8", "16", "16", "24", "24", "32"]
    # the one that hung sleeps, and the other one waits for it
    assert "worker1 in report" in (hung(tmp_path / "disturbed-hung") or "")
    assert hung(tmp_path / "undisturbed-hung") is None
    assert same_weights(tmp_path / "undisturbed-export", tmp_path / "disturbed-export")

"""Two Ray Train workers compute what one process computes on the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from orchestrator.data.prepare import prepare_data
from orchestrator.job import Job
from orchestrator.spec_io import load_spec
from orchestrator.train_loop import run_job
from orchestrator.workers import LocalWorkers
from tests.integration.conftest import environment, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ON_TWO_WORKERS = """
import json, os, sys
from orchestrator.cluster import ray_session
with ray_session():
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from orchestrator.job import Job
    from orchestrator.train_loop import run_job
    from orchestrator.workers import RayWorkers

    def work(config):
        run_job(Job(**config), RayWorkers())

    result = TorchTrainer(
        work, train_loop_config=json.loads(sys.argv[1]),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="two", storage_path=sys.argv[2],
                             failure_config=FailureConfig(controller_failure_limit=1)),
    ).fit()
    result.checkpoint.to_directory(sys.argv[3])
"""


def test_two_workers_equal_one(tmp_path: Path) -> None:
    spec, _ = write_spec(tmp_path)
    campaign = load_spec(
        spec,
        [
            "tasks.letters.dense.steps=4",
            "method.kind=flop-l0",
            "method.start=svd",
            "method.steps=6",
            "method.gated_fraction=0.67",
        ],
    )
    task = campaign.task("letters")
    data = prepare_data(task, tmp_path / "cache", None)
    kept: dict[str, Path] = {}

    def keep(name: str):
        def on_report(_: object, folder: Path | None) -> None:
            if folder is not None:
                kept[name] = tmp_path / name
                import shutil

                shutil.copytree(folder, kept[name])

        return on_report

    common = {
        "task": task.model_dump(mode="json"),
        "method": campaign.method_of(task, density=0.5).model_dump(),
        "data": str(data.folder),
        "seed": 1,
    }
    run_job(Job(key="dense", **common), LocalWorkers(keep("dense")))
    job = {"key": "small", "dense": str(kept["dense"]), **common}
    one = run_job(Job(**job), LocalWorkers(keep("one")))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ON_TWO_WORKERS,
            json.dumps(job),
            str(tmp_path / "ray"),
            str(tmp_path / "two"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert two["workers"] == 2
    assert two["ranks"] == one.ranks
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Adam divides by the size of the gradient: rounding differences grow to about 1e-4
        assert (tensor - second[name]).abs().max() <= 1e-3 * tensor.abs().max() + 1e-5, name

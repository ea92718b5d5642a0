"""A small campaign on real parts, run once by the command a person would type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.data.prepare import prepare_data
from orchestrator.job import Job
from orchestrator.spec import MethodSpec
from orchestrator.spec_io import load_spec
from orchestrator.tracking import default_tracking_uri
from tests.orchestrator.small import train_to

SPEC = """
name: tiny
seed: 3
storage: {storage}
resources: {{workers: 2, cpus_per_worker: 1}}
tasks:
  - name: letters
    kind: language-modelling
    data: {{source: python-docs}}
    level: character
    context: 32
    model:
      type: gpt2
      config: {{n_layer: 2, n_embd: 64, n_head: 2, n_positions: 64, resid_pdrop: 0,
               embd_pdrop: 0, attn_pdrop: 0}}
    dense: {{steps: 30, learning_rate: 5e-3, batch: 8}}
    max_train_examples: 2000
    max_eval_examples: 64
    evaluate_every: 15
  - name: packages
    kind: classification
    data: {{source: python-docs, classes: 3}}
    max_length: 32
    vocab_size: 512
    model:
      type: bert
      config: {{num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 2,
               intermediate_size: 128, max_position_embeddings: 64}}
    dense: {{steps: 30, learning_rate: 2e-3, batch: 8}}
    resources: {{workers: 1, concurrent_trials: 2}}
    max_eval_examples: 60
    evaluate_every: 15
method: {{kind: flop-l0, steps: 25, gated_fraction: 0.6}}
search:
  # no model of these shapes can be that small: the last trial fails, the campaign does not
  density: [0.5, 0.001]
  penalty_lr: {{log_uniform: [0.1, 0.5]}}
measure: {{batch: [1, 8], length: 32, repeats: 7}}
select: {{then: smallest}}
promote: {{gates: ["bytes <= 99%"]}}
"""


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    spec: Path
    storage: Path
    output: str
    code: int

    @property
    def tracking_uri(self) -> str:
        return default_tracking_uri(str(self.storage))

    def again(self, *command: str) -> Ran:
        """Another command on the same spec, in a fresh process."""
        return lowrank(self.spec, self.storage, *command)


def environment() -> dict[str, str]:
    """Without what pytest or a surrounding cluster left behind."""
    dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PYTEST_CURRENT_TEST")
    return {k: v for k, v in os.environ.items() if k not in dropped}


def lowrank(spec: Path, storage: Path, command: str = "run", *rest: str) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", command, str(spec), *rest],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=spec.parent,
        timeout=540,
        check=False,
    )
    return Ran(spec, storage, done.stdout + done.stderr, done.returncode)


def start(spec: Path, log: Path, *asked: str) -> subprocess.Popen[bytes]:
    """`lowrank run` in the background, what it says in a file."""
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "jobs", "run", str(spec), *asked],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
            # a test run in a shell's background inherits an ignored SIGINT, and would pass it on
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until a campaign has said it."""
    deadline = time.monotonic() + 240
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def without_letters(spec: Path) -> None:
    """Leave the spec the task that takes less time."""
    text = spec.read_text()
    begin, end = text.index("  - name: letters"), text.index("  - name: packages")
    spec.write_text(text[:begin] + text[end:])


def without_packages(spec: Path) -> None:
    """Leave the spec the task that trains on two workers."""
    text = spec.read_text()
    begin, end = text.index("  - name: packages"), text.index("method: {kind")
    spec.write_text(text[:begin] + text[end:])


def compression(folder: Path, evaluate_every: int, steps: int) -> dict[str, Any]:
    """Fields of a job that compresses a small character model, its parent trained here."""
    spec, _ = write_spec(folder)
    task = load_spec(spec, ["tasks.letters.dense.steps=4"]).task("letters")
    task = task.model_copy(update={"evaluate_every": evaluate_every})
    method = MethodSpec(kind="adaptive", density=0.5, steps=steps, gated_fraction=0.5)
    data = prepare_data(task, folder / "cache", None)
    fields = {
        "task": task.model_dump(mode="json"),
        "method": method.model_dump(),
        "data": str(data.folder),
        "seed": 1,
    }
    dense = train_to(folder / "dense", Job(key="dense", **fields))
    return {"key": "small", "dense": dense.export, **fields}


def same_weights(one: Path, other: Path) -> bool:
    """Whether two exports have the same bits."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def write_spec(folder: Path, name: str = "tiny") -> tuple[Path, Path]:
    storage = folder / "runs"
    spec = folder / "spec.yaml"
    spec.write_text(
        SPEC.format(storage=storage).replace("name: tiny", f"name: {name}"), encoding="utf-8"
    )
    return spec, storage


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    spec, storage = write_spec(tmp_path_factory.mktemp("campaign"))
    return lowrank(spec, storage)

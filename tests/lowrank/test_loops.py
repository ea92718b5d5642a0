"""The loops of docs/loops.md, run as they stand there."""

from __future__ import annotations

import copy
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import lowrank
from lowrank.forms import described_layers
from tests.lowrank import relative_error, tiny_gpt2, token_ids

PAGE = Path(__file__).parents[2] / "docs" / "loops.md"
GATED, STEPS = 8, 12


def block(name: str) -> str:
    """The one block of the page with this name after its language."""
    (found,) = re.findall(rf"^```python {name}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return found


def sample(seed: int, rows: int = 2) -> dict[str, torch.Tensor]:
    ids = token_ids(rows, 8, seed)
    return {"input_ids": ids, "labels": ids}


def namespace(folder: Path, **more: Any) -> dict[str, Any]:
    """What the page supposes, and its pruner."""
    names: dict[str, Any] = {
        "model": tiny_gpt2(),
        "batches": [sample(seed) for seed in range(STEPS)],
        "calibration": [sample(seed) for seed in range(3)],
        "folder": str(folder),
    }
    names["teacher"] = copy.deepcopy(names["model"]).eval()
    run("setup", names)
    return names | more


def run(name: str, names: dict[str, Any]) -> None:
    exec(compile(block(name), f"{PAGE.name}: {name}", "exec"), names)


def assert_small(model: nn.Module, pruner: lowrank.Pruner) -> None:
    assert pruner.finished
    assert described_layers(model)
    kept = {name: int(mask.sum()) for name, mask in pruner._keep.items()}
    assert lowrank.realized_density(kept, pruner.control.costs) <= pruner.method.density


@torch.no_grad()
def assert_loads(model: nn.Module, folder: Path) -> None:
    names = {"folder": str(folder)}
    run("load", names)
    ids = token_ids()
    error = relative_error(names["loaded"](input_ids=ids).logits, model(input_ids=ids).logits)
    assert error <= 1e-6


def test_plain(tmp_path):
    names = namespace(tmp_path)
    run("plain", names)
    small = names["small"].eval()
    assert_small(small, names["pruner"])
    assert_loads(small, tmp_path)


@pytest.mark.parametrize("stop", [3, GATED])
def test_plain_goes_on(stop, tmp_path):
    straight = namespace(tmp_path)
    run("plain", straight)
    first = namespace(tmp_path)
    head, tail = block("plain").split("\n\nsmall = ")
    exec(head.replace(f"[:{GATED}]", f"[:{stop}]"), first)
    if stop == GATED:
        first["small"] = first["pruner"].finish()
        exec("optimizer = torch.optim.AdamW(pruner.parameter_groups(learning_rate=1e-3))", first)
    stateful = {"pruner": first["pruner"], "model": first["pruner"].model}
    stateful["optimizer"] = first["optimizer"]
    state = {name: each.state_dict() for name, each in stateful.items()}

    second = namespace(tmp_path, state=state, torch=torch)
    run("plain-resume", second)
    pruner = second["pruner"]
    assert pruner.step_index == stop
    assert pruner.finished == (stop == GATED)
    if stop < GATED:
        loop = head[head.index("for batch") :].replace(f"[:{GATED}]", f"[{stop}:{GATED}]")
        exec(loop + "\n\nimport lowrank.hf\nsmall = " + tail, second)
    else:
        second["small"] = pruner.model
        exec("import lowrank.hf\n" + tail[tail.index("for batch") :], second)
    wanted = straight["small"].state_dict()
    assert all(torch.equal(value, wanted[n]) for n, value in second["small"].state_dict().items())


def dataset(size: int = 4 * STEPS) -> list[dict[str, torch.Tensor]]:
    return [{name: value[0] for name, value in sample(seed, 1).items()} for seed in range(size)]


def trainer_names(folder: Path, **arguments: Any) -> dict[str, Any]:
    more = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, **arguments}
    return namespace(folder, dataset=dataset(), more=more)


def test_teacher(tmp_path):
    names = namespace(tmp_path)
    run("teacher", names)
    batch = sample(0)
    loss = names["loss_of"](names["pruner"].model, batch)
    loss.backward()
    assert loss.item() > 0
    # the teacher's own answers leave half of its loss on the labels
    own = names["teacher"](**batch).loss.item()
    assert names["loss_of"](names["teacher"], batch).item() == pytest.approx(own / 2, rel=1e-5)


def test_trainer(tmp_path):
    names = trainer_names(tmp_path)
    run("trainer", names)
    assert names["checkpoint"] is None
    trainer = names["trainer"]
    small = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    assert_small(small, names["pruner"])
    assert names["pruner"].step_index == GATED
    assert_loads(small, tmp_path)
    # the script once more goes on from its last checkpoint, which is the end
    again = trainer_names(tmp_path)
    run("trainer", again)
    assert again["checkpoint"].endswith(f"checkpoint-{STEPS}")
    assert_loads(small, tmp_path)


def accelerate_names(folder: Path, loader: Any, checkpoint: Path | None = None) -> dict[str, Any]:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return namespace(folder, loader=loader, checkpoint=checkpoint)


@pytest.mark.parametrize("stop", [3, GATED, 10])
def test_accelerate_and_its_resumption(stop, tmp_path):
    micro = [sample(seed) for seed in range(2 * STEPS)]
    straight = accelerate_names(tmp_path / "a", micro)
    run("accelerate", straight)
    small = straight["pruner"].model
    assert_small(small, straight["pruner"])
    assert straight["pruner"].step_index == GATED

    run("accelerate", accelerate_names(tmp_path / "b", micro[: 2 * stop]))
    second = accelerate_names(tmp_path / "c", micro[2 * stop :], tmp_path / "b")
    run("accelerate", second)
    wanted = small.state_dict()
    found = second["pruner"].model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def accelerate_worker(rank: int, folder: str, port: int, micro: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.manual_seed(rank)
    names = namespace(Path(folder), checkpoint=None)
    names["loader"] = [sample(2 * seed + rank) for seed in range(micro)]
    run("accelerate", names)
    assert names["accelerator"].num_processes == 2
    assert isinstance(names["model"], nn.parallel.DistributedDataParallel)
    torch.save(names["pruner"].model.state_dict(), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_accelerate_with_two_processes(tmp_path):
    """Both end with one model, small and trained after the projection too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    states = {}
    for micro in (2 * GATED, 2 * STEPS):
        folder = tmp_path / str(micro)
        folder.mkdir()
        mp.spawn(accelerate_worker, args=(str(folder), port, micro), nprocs=2)
        states[micro], other = (torch.load(folder / f"{rank}.pt") for rank in range(2))
        assert states[micro].keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in states[micro].items())
    first, last = states[2 * GATED], states[2 * STEPS]
    assert any(name.endswith(".projection") for name in last)
    assert first.keys() == last.keys()
    assert not torch.equal(first["lm_head.weight"], last["lm_head.weight"])

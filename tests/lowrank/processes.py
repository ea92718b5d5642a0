"""Two real processes, as data-parallel training has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Run = Callable[[int, int, Callable[[nn.Module], nn.Module]], dict[str, Any]]
"""From rank, number of processes, and what wraps the model, to tensors."""


def in_processes(run: Run, folder: Path, number: int = 2) -> list[dict[str, Any]]:
    """What every one of the processes returns; `run` must be importable."""
    mp.spawn(_worker, args=(run, number, str(folder)), nprocs=number)
    return [torch.load(folder / f"{rank}.pt") for rank in range(number)]


def _worker(rank: int, run: Run, number: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=number
    )
    # as RayWorkers: the only buffers that change are the gates' noise, the same on all
    wrap = partial(DistributedDataParallel, forward_sync_buffers=False)
    try:
        torch.save(run(rank, number, wrap), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()

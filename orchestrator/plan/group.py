"""The processes of a probe, as the training loop sees them: a group with a tape."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.plan.states import model_bytes, state_bytes
from orchestrator.plan.trace import Evaluation
from orchestrator.plan.work import DENSE, GATED
from orchestrator.stopping.signals import Stop


@dataclass(kw_only=True)
class Tape:
    """What is written down of one training."""

    beats: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    model_bytes: dict[str, int] = field(default_factory=dict)
    state_bytes: dict[str, int] = field(default_factory=dict)
    reporting_s: float = 0.0
    home: Path | None = None
    """Where the exported model is kept."""


class ProbeWorkers:
    """The group of a probe, with a tape; `Workers` for the training loop."""

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device
        self.tape = Tape()
        self.phases: list[tuple[str, int]] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        phase = self._phase()
        keeps_best = phase != GATED
        held = model_bytes(model), state_bytes(model, keeps_best, self.world)
        self.tape.model_bytes[phase] = max(held[0], self.tape.model_bytes.get(phase, 0))
        self.tape.state_bytes[phase] = max(held[1], self.tape.state_bytes.get(phase, 0))
        if self.world == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        # as RayWorkers
        return DistributedDataParallel(model, device_ids=devices, forward_sync_buffers=False)

    def gather(self, value: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def report(self, progress: dict[str, Any], checkpoint: Path | None = None) -> None:
        if checkpoint is not None and self.rank == 0 and self.tape.home is not None:
            began = time.perf_counter()
            shutil.rmtree(self.tape.home, ignore_errors=True)
            shutil.copytree(checkpoint, self.tape.home)
            self.tape.reporting_s += time.perf_counter() - began

    def ending(self) -> bool:
        return False

    def stop_asked(self) -> Stop | None:
        return None

    def beat(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.tape.beats.append(time.perf_counter())

    def _phase(self) -> str:
        """Of the next step."""
        done = len(self.tape.beats)
        for phase, number in self.phases:
            if done < number:
                return phase
            done -= number
        return self.phases[-1][0] if self.phases else DENSE


def forget_peak(device: torch.device) -> None:
    """Let the peak of memory begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak() -> int:
    """Of resident memory, in bytes."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return 1024 * int(found)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def device_peak(device: torch.device) -> int:
    # reserved, not allocated: another process cannot have it
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


@contextmanager
def group(world: int, rank: int, device: str, rendezvous: Path) -> Iterator[None]:
    """The processes of one trial find each other through a file."""
    if world == 1:
        yield
        return
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
    )
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()

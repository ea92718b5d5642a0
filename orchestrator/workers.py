"""What the training loop knows of the processes it runs in: rank, gather, report.

The loop never names Ray. `LocalWorkers` is one plain process; `RayWorkers` is a worker of a Ray
Train run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from orchestrator.bucket.places import opened
from orchestrator.stopping.signals import Stop, heard
from orchestrator.watchdog import Watchdog


class Workers(Protocol):
    """The data-parallel group, seen from one of its processes."""

    rank: int
    world: int
    device: torch.device

    def wrap(self, model: nn.Module) -> nn.Module:
        """Make gradients the mean over workers; the wrapped model shares its parameters."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank, on every worker."""
        ...

    def report(self, progress: dict[str, Any], checkpoint: Path | None = None) -> None:
        """Called by all workers at the same steps; rank 0's values and files are kept."""
        ...

    def ending(self) -> bool:
        """Whether notice was given that a machine of the group will be taken away. Called by all
        workers at the same steps; the same on all of them."""
        ...

    def stop_asked(self) -> Stop | None:
        """What asks the training to end now, because others are ahead of it. Called by all workers
        at the same steps; the same on all of them."""
        ...

    def beat(self) -> None:
        """Called at every step: this worker does not hang."""
        ...


class LocalWorkers:
    """One process, no cluster."""

    rank, world = 0, 1

    def __init__(self, on_report: Any = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._on_report = on_report

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def report(self, progress: dict[str, Any], checkpoint: Path | None = None) -> None:
        if self._on_report is not None:
            self._on_report(progress, checkpoint)

    def ending(self) -> bool:
        return False

    def stop_asked(self) -> Stop | None:
        return None

    def beat(self) -> None:
        pass


class RayWorkers:
    """A worker of a Ray Train run; gloo on CPU, NCCL on GPU, as TorchTrainer chose.

    Args:
        watchdog: Hears of each step.
        home: Place in a bucket where a finished model's files go; None hands them to Ray, whose
            folders are on storage that all machines see.
        stop_signal: Where to hear that the training is to stop; None if it never is.
    """

    def __init__(
        self,
        watchdog: Watchdog | None = None,
        home: str | None = None,
        stop_signal: str | None = None,
    ) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._watchdog, self._home, self._stop_signal = watchdog, home, stop_signal

    def wrap(self, model: nn.Module) -> nn.Module:
        import ray.train.torch

        # the only buffers that change are the gates' noise, the same on every worker already
        return ray.train.torch.prepare_model(
            model, parallel_strategy_kwargs={"forward_sync_buffers": False}
        )

    def gather(self, value: Any) -> list[Any]:
        self.beat()
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def report(self, progress: dict[str, Any], checkpoint: Path | None = None) -> None:
        import ray.train

        kept = None
        if checkpoint is not None and self.rank == 0 and self._home is not None:
            mirror, folder = opened(self._home)
            mirror.push_folder(folder, source=checkpoint)
        elif checkpoint is not None and self.rank == 0:
            kept = ray.train.Checkpoint.from_directory(str(checkpoint))
        ray.train.report(progress, checkpoint=kept)
        self.beat()

    def ending(self) -> bool:
        import ray.train

        return ray.train.get_preemption_info() is not None

    def stop_asked(self) -> Stop | None:
        if self._stop_signal is None:
            return None
        stop: Stop | None = self.gather(heard(self._stop_signal) if self.rank == 0 else None)[0]
        return stop

    def beat(self) -> None:
        if self._watchdog is not None:
            self._watchdog.beat()

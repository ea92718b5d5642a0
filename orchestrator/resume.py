"""A training that was stopped goes on after its last saved step, as if it had not been.

What is saved: weights, gates, multipliers, the optimizer's moments, the best weights so far, the
curve, and for every worker its random state, the losses since the last curve point and what the
task remembers. Batches and the gates' noise are functions of seed and step, so with these a run on
the same machines ends with the same bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lowrank.errors import first_line
from lowrank.pruner import Pruner
from orchestrator.errors import CampaignError, StoppedError
from orchestrator.optimizer_state import optimizer_state, restore_optimizer
from orchestrator.records import CurvePoint
from orchestrator.snapshot import Snapshot, SnapshotError, SnapshotStore
from orchestrator.stretch import Training
from orchestrator.workers import Workers

logger = logging.getLogger(__name__)

INTERVAL_S = 60.0
"""A state is saved at the first validation after so many seconds: a lost worker then costs minutes
at most, and a training of a minute is not worth a file."""
BETWEEN_S = 120.0
"""Validations may be an hour apart: then a state is saved between them, after so many seconds
without one. Twice `INTERVAL_S`: where validations come often enough they go first."""
LEAST_APART = 20
"""Times the duration of the last saving: no more than a twentieth of the time is spent on it."""
LOOK_EVERY_S = 5.0
"""Between two looks for a notice that a machine will be taken away, a wish to stop, or a state that
is due. Ray asks its nodes as often; clouds give notice of 30 seconds to two minutes."""


class Keeper:
    """Saves a job's training now and then, and restores what was saved last.

    Args:
        store: None saves nothing.
        workers: All of them call the same methods at the same steps.
    """

    def __init__(self, store: SnapshotStore | None, workers: Workers) -> None:
        self.workers = workers
        self.pruner: Pruner | None = None
        """Part of every state, once it is there."""
        self.facts: dict[str, Any] = {}
        """What earlier stages found out, JSON; part of every state."""
        self.rate_factor = 1.0
        """On the learning rates, below 1 after a divergence; part of every state."""
        self.worlds: list[tuple[int, int]] = [(0, workers.world)]
        """From which step of the job on how many workers trained; part of every state."""
        self._store = store
        self._saved_at = time.monotonic()
        self._saving_took = 0.0
        self._looks = _Looks()
        self._found: Snapshot | None = None
        self._found_at = 0
        self._find()

    @property
    def phase(self) -> str | None:
        """Of the state that was found; None without one."""
        if self._found is None:
            return None
        with self._fitting():
            return str(self._found.facts["phase"])

    def roll_back(self, factor: float) -> None:
        """Begin again at the last state, or without one at the beginning, with lower rates."""
        self.pruner, self.facts = None, {}
        self._find()
        self.rate_factor *= factor

    def pass_over(self) -> None:
        """Have no use for the state that was found."""
        self._found = None

    def restructure(self, pruner: Pruner) -> None:
        """Bring a new pruner, and its model, to the structure of the state that was found. Comes
        before anything holds on to the model's parameters."""
        self.pruner = pruner
        if self._found is not None:
            with self._fitting():
                pruner.load_state_dict(self._found.part("pruner."))

    def restore(self, training: Training) -> int:
        """Put the found state into a stretch that is about to begin, if it is of this stretch.

        Returns:
            Steps of the stretch that are done.
        """
        found = self._found
        if found is None or self.phase != training.phase:
            return 0
        with self._fitting():
            self._put_into(training, found)
            step = int(found.facts["step"])
        self._found = None
        logger.info("goes on after step %d", training.first_step + step)
        return step

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """What is wrong with a whole state is not of this training, and will be so again."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            assert self._store is not None
            raise SnapshotError(
                f"{self._store.folder}: its last state is not one of this training "
                f"({first_line(error)}); without the folder the training begins anew"
            ) from error

    def _put_into(self, training: Training, found: Snapshot) -> None:
        training.model.load_state_dict(found.part("model."))
        restore_optimizer(training.optimizer, found.part("optimizer."))
        training.best.load(found.part("best."), found.facts["best"])
        recorder = training.recorder
        recorder.curve[:] = [CurvePoint(**point) for point in found.facts["curve"]]
        recorder.started, recorder.before = time.perf_counter(), found.facts["seconds"]
        if found.facts["world"] == self.workers.world:
            self._restore_own(training, found.part(f"worker{self.workers.rank}."))
        else:
            before, now = found.facts["world"], self.workers
            logger.warning(
                "saved with %d workers, goes on with %d: the batches are the same, dropout is not",
                before,
                now.world,
            )
            memories = [found.part(f"worker{rank}.memory.") for rank in range(before)]
            self._remember(training, training.task.shared_out(memories, now.rank, now.world))

    def offer(self, training: Training, step: int) -> None:
        """Save the training after a step of its stretch, if it is time.

        Raises:
            StoppedError: Others are ahead of it.
        """
        self._heed(training, step)
        self._save_after(INTERVAL_S, training, step)

    def look(self, training: Training, step: int) -> None:
        """Save the training after any step, if a machine is about to be taken away or it is long
        since it was saved, and tell how far it is: there may be no validation for an hour. Cheap
        at most steps.

        Raises:
            StoppedError: Others are ahead of it.
        """
        if self._store is None or not self._looks.due(training.first_step + step):
            return
        self._heed(training, step)
        if self._save_after(0.0 if self.workers.ending() else BETWEEN_S, training, step):
            training.recorder.tell()
        # the steps of all workers are those of the first
        self._looks.next(self.workers.gather(self._looks.pause())[0])

    def _heed(self, training: Training, step: int) -> None:
        """End a training that is asked to stop; one that has all its steps is not worth it."""
        done, recorder = training.first_step + step, training.recorder
        asked = self.workers.stop_asked() if done < recorder.total_steps else None
        if asked is not None:
            recorder.flush()
            raise StoppedError(asked.rung, asked.reason, done)

    def _save_after(self, seconds: float, training: Training, step: int) -> bool:
        """Unless the last state is younger than that."""
        if self._store is None:
            return False
        wait = max(seconds, LEAST_APART * self._saving_took)
        due = bool(self.workers.gather(time.monotonic() - self._saved_at >= wait)[0])
        if due:
            self._save(self._store, training, step)
        return due

    def _find(self) -> None:
        self._found = self._read()
        if self._found is not None:
            with self._fitting():
                self.facts = dict(self._found.facts["job"])
                # states of earlier versions have none
                self.rate_factor = float(self._found.facts.get("rate_factor", 1.0))
                self.worlds = self._worlds(self._found.facts)

    def _read(self) -> Snapshot | None:
        """What rank 0 finds, on every worker: one that sees less of the storage must not begin
        somewhere else."""
        if self._store is None:
            return None
        step = self._store.last_whole() if self.workers.rank == 0 else None
        step = self.workers.gather(step)[0]
        self._found_at = step or 0
        return None if step is None else self._store.load(step)

    def _worlds(self, facts: dict[str, Any]) -> list[tuple[int, int]]:
        # states of earlier versions tell of the last number alone
        worlds = [(int(a), int(b)) for a, b in facts.get("worlds", [(0, facts["world"])])]
        if worlds[-1][1] != self.workers.world:
            worlds.append((self._found_at, self.workers.world))
        return worlds

    def _save(self, store: SnapshotStore, training: Training, step: int) -> None:
        began = time.monotonic()
        own = self.workers.gather(self._own(training))
        if self.workers.rank == 0:
            try:
                store.save(training.first_step + step, self._snapshot(training, step, own))
            except CampaignError as error:
                # training is worth more than its state: whoever runs it hears of it and goes on
                logger.warning("no state was saved: %s", error)
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - began

    def _snapshot(self, training: Training, step: int, own: list[dict[str, Tensor]]) -> Snapshot:
        best, value = training.best.state()
        parts = {
            "model.": training.model.state_dict(),
            "pruner.": {} if self.pruner is None else self.pruner.state_dict(),
            "optimizer.": optimizer_state(training.optimizer),
            "best.": best,
        }
        parts |= {f"worker{rank}.": each for rank, each in enumerate(own)}
        # copies, for tied weights are one tensor under two names
        tensors = {
            prefix + name: tensor.detach().cpu().clone().contiguous()
            for prefix, part in parts.items()
            for name, tensor in part.items()
        }
        facts = {
            "phase": training.phase,
            "step": step,
            "world": self.workers.world,
            "best": value,
            "seconds": training.recorder.seconds,
            "curve": [asdict(point) for point in training.recorder.curve],
            "job": self.facts,
            "rate_factor": self.rate_factor,
            "worlds": self.worlds,
        }
        return Snapshot(tensors=tensors, facts=facts)

    def _own(self, training: Training) -> dict[str, Tensor]:
        """What is this worker's alone."""
        state = {"random": torch.get_rng_state()}
        if self.workers.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.workers.device)
        if training.losses:
            state["losses"] = torch.stack(training.losses).cpu()
        memory = training.task.memory()
        return state | {f"memory.{name}": tensor.cpu() for name, tensor in memory.items()}

    def _restore_own(self, training: Training, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["random"])
        if "random.cuda" in state:
            torch.cuda.set_rng_state(state["random.cuda"], self.workers.device)
        if "losses" in state:
            training.losses[:] = state["losses"].to(self.workers.device).unbind()
        memory = {k.removeprefix("memory."): v for k, v in state.items() if k.startswith("memory.")}
        self._remember(training, memory)

    def _remember(self, training: Training, memory: dict[str, Tensor]) -> None:
        training.task.remember({k: v.to(self.workers.device) for k, v in memory.items()})


class _Looks:
    """Steps between two looks, from how long steps take."""

    def __init__(self) -> None:
        self._now, self._last, self._next, self._pause = 0, 0, 0, 1
        self._at = time.monotonic()

    def due(self, step: int) -> bool:
        """Counted over the whole job."""
        self._now = step
        return step >= self._next

    def pause(self) -> int:
        """In steps; at most twice the one before, for the first steps are slow."""
        now, done = time.monotonic(), self._now - self._last
        seconds = max(now - self._at, 1e-6)
        self._at, self._last = now, self._now
        fits = round(LOOK_EVERY_S * done / seconds)
        self._pause = max(1, min(2 * self._pause, fits))
        return self._pause

    def next(self, pause: int) -> None:
        self._next = self._now + pause

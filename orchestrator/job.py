"""What a worker is asked to do, as plain values that travel through Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from orchestrator.spec import MethodSpec, content_hash
from orchestrator.spec_tasks import AnyTask, Task


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs, as JSON-able values: it travels through Ray."""

    key: str
    task: dict[str, Any]
    """The task of the spec."""
    method: dict[str, Any]
    """The method with searched values filled in; names the prunable layers for a dense job too."""
    data: str
    """Place (`bucket.places`) of the prepared data."""
    seed: int
    dense: str | None = None
    """Place of the exported dense reference; None makes this a dense job."""
    snapshots: str | None = None
    """Place for training states, which all workers see; None keeps none."""
    ladder: dict[str, Any] | None = None
    """Fields of `ladder.Ladder`, of a job that is part of one."""
    num_snapshots: int = 2
    """States that are kept, the last ones."""

    @property
    def is_trunk(self) -> bool:
        """Whether it leaves states for its ladder's branches, and no model."""
        return self.ladder is not None and self.ladder["rung"] is None

    @property
    def task_spec(self) -> AnyTask:
        return TypeAdapter(Task).validate_python(self.task)

    @property
    def method_spec(self) -> MethodSpec:
        return MethodSpec.model_validate(self.method)

    @property
    def batch_seed(self) -> int:
        """Decides the order of the data. Compressions read them in another order than their parent
        did, or the repeat that shares its seed would begin with the batches it began with."""
        return self.seed if self.dense is None else int(content_hash([self.seed, "trial"], 7), 16)

    def worker_seed(self, rank: int) -> int:
        """Dropout differs between workers; everything shared is seeded by the job alone."""
        return int(content_hash([self.seed, self.key, "worker", rank], 12), 16)

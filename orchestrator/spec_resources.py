"""What a trial takes of a cluster: the block `resources`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from orchestrator.spec_block import Block, PlacedErrors, rule
from orchestrator.spec_labels import check_labels


class Resources(Block):
    """What one trial takes, and how many run side by side."""

    workers: int = Field(1, ge=1, le=4096)
    """Data-parallel processes of one trial; with `min_workers` at most so many."""
    min_workers: int | None = Field(None, ge=1, le=4096)
    """A training begins with as many workers as there is room for, from this number on, and goes on
    with more or fewer as machines come and go. Then its result is not the same to the last bit if
    it is repeated. By default always `workers`."""
    resize_minutes: float = Field(5, gt=0, le=1440)
    """With `min_workers`: how long a group stays as it is before it takes more machines. 5: a
    resize costs about half a minute, a tenth of that."""
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    """0 trains on the CPU."""
    concurrent_trials: int = Field(1, ge=1)
    """As many as this at a time, of all tasks together, if the cluster has room for them."""
    wait_minutes: float = Field(15, ge=0, le=1440)
    """On a cluster: how long machines are waited for when not even one trial fits. Anywhere: how
    long a training waits for storage that cannot be written. 15: clouds bring a GPU node within
    ten."""
    hang_minutes: float = Field(30, gt=0, le=1440)
    """A worker that is longer about one step, one validation or the start is taken to hang: its
    training goes on from the last state. 30: as long as torch waits for a collective operation."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Of the nodes that workers and measurements of speed run on: `{ray.io/accelerator-type: H100}`
    or what a group of machines was given. A value, `!value`, `in(one, other)`, `!in(one, other)`.
    """

    @property
    def fewest(self) -> int:
        """Workers with which a trial can run."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def workers_in_words(self) -> str:
        """`4`, or `2 to 4`."""
        return str(self.workers) if self.min_workers is None else f"{self.fewest} to {self.workers}"

    @field_validator("labels")
    @classmethod
    def _selectors(cls, value: dict[str, str]) -> dict[str, str]:
        return check_labels(value)

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.fewest > self.workers:
            message = f"must be at most workers, got {self.min_workers} and {self.workers}"
            raise PlacedErrors([rule(("min_workers",), message)], type(self))
        if self.min_workers is not None and self.labels:
            # Ray 2.60 counts the room for workers on all nodes, whatever their labels
            message = f"must be empty with min_workers, got {sorted(self.labels)}"
            raise PlacedErrors([rule(("labels",), message)], type(self))
        return self

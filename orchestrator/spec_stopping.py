"""Which draws end before their time: the block `search.stopping`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field, field_validator

from orchestrator.spec_block import Block, rule
from orchestrator.spec_method import MethodSpec

Rung = Annotated[float, Field(gt=0, lt=1)]


class StoppingSpec(Block):
    """Draws that others are ahead of, in validation quality and size, are stopped at rungs; never
    the dense reference, a repeat or a finalist. Absent, every trial trains to its end."""

    rungs: list[Rung] = Field(default=[0.5, 0.75], min_length=1)
    """Parts of a training's steps, ascending: a draw is judged at its first validation from there
    on, if its structure is fixed by then and it is the second at least since; one whose gates still
    move passes. By default gates close at 0.3, 0.4 or 0.6: those of docs/results/stopping.md."""
    keep: float = Field(0.5, gt=0, lt=1)
    """Part of all that have been at a rung which goes on, rounded up, by non-dominated rank and
    then spread. 0.5: rungs are close together; with the usual 1/4 at each only a sixty-fourth of
    the draws would end."""
    at_least: int = Field(4, ge=2, le=10_000)
    """With fewer at a rung nobody is stopped. 4: with two objectives, two that go on."""

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if any(a >= b for a, b in pairwise(value)):
            raise ValueError(f"rungs must ascend, got {value}")
        return value


def milestone(rung: float, total: int) -> int:
    """The step at which a training of `total` steps has reached a rung."""
    # 0.7 * 10 is a little more than 7
    return math.ceil(rung * total - 1e-9)


def training_steps(method: MethodSpec, dense_steps: int) -> int:
    """Of a trial; a small model from scratch has those of the dense one as well."""
    return method.steps + dense_steps if method.kind == "from-scratch" else method.steps


def fixed_from(method: MethodSpec) -> int:
    """The step from which on a trial's structure is fixed."""
    return 0 if method.kind == "from-scratch" else method.gated_steps


def stopping_errors(
    stopping: StoppingSpec, draws: Sequence[int], cells: int, **others: Any
) -> Iterator[dict[str, Any]]:
    """What stopping refuses of the block `search`.

    Args:
        stopping: Valid by itself.
        draws: Of each method at one density.
        cells: Densities with draws of their own.
        others: Fields that stopping does not go together with; None if they are not given.
    """
    for name, value in others.items():
        if value is not None:
            yield rule(("stopping",), f"{_WHY[name]}: search.{name} must not be given, got {value}")
    if max(draws) < 2:
        message = "stops draws only, and the best at a density never: trials_per_density must be at"
        yield rule(("stopping",), f"{message} least 2, got {max(draws)}")
    elif stopping.at_least > sum(draws) * cells:
        message = f"must be at most the {sum(draws) * cells} draws of a task, or nobody is stopped,"
        yield rule(("stopping", "at_least"), f"{message} got {stopping.at_least}")


_WHY = {
    "sampler": "leaves a sampler that learns without the quality of what was stopped",
    "ladder": "cannot stop a model that others branch off or go on from",
}


def unreached(
    stopping: StoppingSpec, methods: dict[str, MethodSpec], evaluate_every: int, dense_steps: int
) -> Iterator[str]:
    """Why rungs can judge nobody, or two of them the same validation.

    Args:
        stopping: Valid by itself.
        methods: Of one task, by name, those whose steps are known.
        evaluate_every: Of the task.
        dense_steps: Of its reference, which a small model from scratch trains too.
    """
    judged = False
    for name, method in methods.items():
        gated, total = fixed_from(method), training_steps(method, dense_steps)
        fixed = [rung for rung in stopping.rungs if milestone(rung, total) >= gated]
        judged = judged or bool(fixed)
        for rung, after in zip(fixed, [*fixed[1:], 1.0], strict=False):
            end = milestone(after, total)
            # by the second one since the structure is fixed its pace is known
            looks = max(2, math.ceil((milestone(rung, total) - gated) / evaluate_every))
            if gated + looks * evaluate_every >= end:
                yield (
                    f"{name} has no validation between step {milestone(rung, total)} (rung "
                    f"{rung:g}) and step {end} that is the second or a later one since its "
                    f"structure is fixed (step {gated}): evaluate_every must be smaller, got "
                    f"{evaluate_every}, or the rungs fewer"
                )
    if methods and not judged:
        gates = ", ".join(f"{name} at step {each.gated_steps}" for name, each in methods.items())
        yield (
            f"one rung at least must come after the gates have closed ({gates}), got "
            f"{stopping.rungs}"
        )

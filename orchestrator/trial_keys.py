"""Keys of models: a hash of all that decides what a model will be.

A model with the key of one that is there is not trained again, whatever became of the campaign.
"""

from __future__ import annotations

from orchestrator.spec import CampaignSpec, MethodSpec, content_hash
from orchestrator.spec_tasks import AnyTask

CODE_CONTRACT = 1
"""Raised when a change of code makes finished models incomparable; part of every key."""
TRIAL_CONTRACT = 3
"""The same for trials alone: dense references keep their keys."""
KIND_CONTRACT = {"flop-agp": 2}
"""The same for trials of one kind of method."""
DISTILLED_CONTRACT = {"adaptive-decoder": 1}
"""The same for trials that distill a model of one type."""
LADDER_CONTRACT = {"trunk": 1, "chain": 2}
"""The same for the models of ladders."""


def trial_key(
    spec: CampaignSpec,
    task: AnyTask,
    method: MethodSpec,
    data_hash: str,
    seed: int | None = None,
    method_name: str = "",
) -> str:
    """Hash of everything that decides a trial's result.

    Args:
        spec: The campaign.
        task: One of its tasks.
        method: With the trial's values.
        data_hash: Of the prepared data.
        seed: Of the trial; by default the campaign's.
        method_name: Of a compared method: two methods with equal values are two trials.
    """
    described = [method.deciding(), spec.seed if seed is None else seed, method_name]
    contracts = [TRIAL_CONTRACT]
    if method.kind in KIND_CONTRACT:
        contracts.append(KIND_CONTRACT[method.kind])
    distills = method.distill or method.distill_hidden
    if distills and task.model.type in DISTILLED_CONTRACT:
        contracts.append(DISTILLED_CONTRACT[task.model.type])
    return content_hash([dense_key(spec, task, data_hash), *described, "trial", *contracts])


def trunk_key(
    spec: CampaignSpec,
    task: AnyTask,
    method: MethodSpec,
    data_hash: str,
    seed: int,
    method_name: str,
) -> str:
    """Hash of everything that decides what the branches of a ladder have in common."""
    assert spec.search.ladder is not None
    # not where the branches run, which changes nothing; a default written down is the default
    ladder = spec.search.ladder
    steps = {"by": ladder.by} | dict(
        zip(("first", "descent", "recovery"), ladder.parts, strict=True)
    )
    # at whichever density: it is the same trunk
    one = method.model_copy(update={"density": max(spec.search.density)})
    described = [spec.search.descending, steps, LADDER_CONTRACT[ladder.by]]
    return content_hash(
        [trial_key(spec, task, one, data_hash, seed, method_name), "trunk", *described]
    )


def rung_key(trunk: str, density: float) -> str:
    """Of a ladder's model."""
    return content_hash([trunk, density])


def dense_key(spec: CampaignSpec, task: AnyTask, data_hash: str) -> str:
    """Hash of everything that decides a dense reference; its seed is the campaign's."""
    described = task.model_dump(mode="json", exclude={"method", "resources", "data"})
    # which matrices count as prunable is part of what is recorded of the dense model
    method = spec.method_of(task)
    resources = spec.resources_of(task)
    # with a range of workers the result is not that of any number in it
    workers: int | list[int] = resources.workers
    if resources.min_workers is not None:
        workers = [resources.min_workers, resources.workers]
    return content_hash(
        [
            CODE_CONTRACT,
            described,
            data_hash,
            spec.seed,
            workers,
            method.include,
            method.exclude,
            method.max_grad_norm,
            # only if used: dense references without it keep their keys
            *(["embeddings"] if method.embeddings else []),
        ]
    )

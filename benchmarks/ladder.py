"""What a ladder costs and what its front covers, against trainings of their own.

    lowrank run jobs/specs/ladder.yaml
    lowrank run jobs/specs/ladder.yaml --set name=ladder-alone --set search.ladder=false
    python -m benchmarks.ladder runs/ladder runs/ladder-alone

Reads result.json of both campaigns; prints Markdown. One line per seed: the cost of the ladder over
that of a training for one density (the mean over densities and seeds), in steps and in seconds, and
the hypervolume of its front over that of the trainings of their own with the same seed; then their
means with intervals over the seeds (Student, 95 %). The objectives are the relative loss of quality
on validation against dense, and the parameters of the whole model relative to dense; seconds are
those of the workers, without what Ray takes to start them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from orchestrator.campaign_records import CampaignResult, TaskResult
from orchestrator.errors import CampaignError
from orchestrator.front.assess import REFERENCE_DROP
from orchestrator.front.figures import Interval
from orchestrator.front.hypervolume import hypervolume
from orchestrator.front.noise import own_interval
from orchestrator.records import ModelRecord


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ladder", type=Path, help="folder of the campaign of ladders")
    parser.add_argument("alone", type=Path, help="folder of the campaign of single trainings")
    parser.add_argument("--reference-drop", type=float, default=REFERENCE_DROP)
    options = parser.parse_args()
    try:
        campaigns = [
            CampaignResult.load(folder / "result.json")
            for folder in (options.ladder, options.alone)
        ]
        for ladder in campaigns[0].tasks:
            alone = next((t for t in campaigns[1].tasks if t.task == ladder.task), None)
            if alone is None:
                raise CampaignError(f"{options.alone} has no task {ladder.task!r}")
            print("\n".join(page(ladder, alone, options.reference_drop)))
    except CampaignError as error:
        raise SystemExit(str(error)) from None


def page(ladder: TaskResult, alone: TaskResult, reference_drop: float) -> list[str]:
    """Lines of Markdown about one task.

    Raises:
        CampaignError: The campaigns do not compare.
    """
    ladders, others = by_seed(ladder), by_seed(alone)
    densities = sorted({d for runs in ladders.values() for d in runs}, reverse=True)
    shared = [
        seed
        for seed in ladders
        if set(ladders[seed]) == set(others.get(seed, {})) == set(densities)
    ]
    mixed = any(run.ladder is None for run in ladder.trials) or any(r.ladder for r in alone.trials)
    if not shared or mixed:
        raise CampaignError(
            f"task {ladder.task!r}: the first campaign must consist of ladders, the second of "
            f"trainings of their own, with the same densities {densities} and at least one of the "
            f"seeds {sorted(ladders)}"
        )
    cost = steps_of_ladder(ladders[shared[0]].values()) / fmean(
        float(run.config["steps"]) for run in alone.trials
    )
    single = fmean(run.train_seconds for seed in shared for run in others[seed].values())
    rows = []
    for seed in shared:
        seconds = sum(run.train_seconds for run in ladders[seed].values()) / single
        volumes = [
            volume(task, list(runs[seed].values()), reference_drop)
            for task, runs in ((ladder, ladders), (alone, others))
        ]
        rows.append((seconds, *volumes, volumes[0] / volumes[1] if volumes[1] else float("nan")))
    lines = [
        f"## {ladder.task}: densities {', '.join(f'{d:g}' for d in densities)}",
        "",
        f"Cost of a ladder in steps: {cost:.2f} trainings for one density.",
        "",
        "| seed | cost in seconds | hypervolume | of trainings of their own | ratio |",
        "| --- |" + " --- |" * 4,
    ]
    for seed, row in zip(shared, rows, strict=True):
        cells = " | ".join(f"{value:.3f}" for value in row)
        lines.append(f"| {seed} | {cells} |")
    means = [own_interval(column) for column in zip(*rows, strict=True)]
    lines += [f"| mean | {' | '.join(map(text, means))} |", ""]
    metric = ladder.dense.metric.name
    lines += [f"| density | {metric}: ladder | of their own | dense |", "| --- |" + " --- |" * 3]
    for density in densities:
        both = [
            text(own_interval([runs[seed][density].quality for seed in shared]))
            for runs in (ladders, others)
        ]
        lines.append(f"| {density:g} | {both[0]} | {both[1]} | {alone.dense.quality:.4f} |")
    return [*lines, ""]


def by_seed(task: TaskResult) -> dict[int, dict[float, ModelRecord]]:
    """Seed -> density -> model."""
    found: dict[int, dict[float, ModelRecord]] = {}
    for run in task.trials:
        if run.target_density in found.setdefault(run.seed, {}):
            raise CampaignError(
                f"task {task.task!r} has several models of density {run.target_density:g} and "
                f"seed {run.seed}: there must be one setting"
            )
        found[run.seed][run.target_density] = run
    return found


def steps_of_ladder(runs: Iterable[ModelRecord]) -> int:
    """Of the trunk and of all branches."""
    facts = [run.ladder for run in runs if run.ladder is not None]
    return sum(each.trunk_steps + each.branch_steps for each in facts)


def volume(task: TaskResult, runs: Sequence[ModelRecord], reference_drop: float) -> float:
    """Of a front of loss of quality and size, relative to the box up to the reference."""
    dense = task.dense
    losses = [
        (
            dense.metric.drop(dense.quality, run.quality),
            run.size.num_parameters / dense.size.num_parameters,
        )
        for run in runs
    ]
    return hypervolume(losses, (reference_drop, 1.0)) / reference_drop


def text(interval: Interval) -> str:
    """A mean with its interval."""
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


if __name__ == "__main__":
    main()

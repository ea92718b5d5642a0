"""The stage after all measurements: choice, registry, report."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from ray.exceptions import RayTaskError

from lowrank.errors import LowRankError
from orchestrator import machines
from orchestrator.campaign_records import CampaignResult, Promotion, TaskResult
from orchestrator.campaign_state import Site, TaskState
from orchestrator.errors import CampaignError
from orchestrator.front.across import across_tasks
from orchestrator.front.assess import noisy_front
from orchestrator.front.figures import NoisyFront
from orchestrator.plan.actual import against_plan
from orchestrator.promotion import Case, register_and_promote
from orchestrator.promotion.card import model_card
from orchestrator.registry import Registry
from orchestrator.report import write_front_figure, write_report
from orchestrator.report_card import kept_cards
from orchestrator.selection import choose, reference_drop
from orchestrator.wording import facts


def conclude(
    site: Site, states: list[TaskState], registry_uri: str, started: datetime, seconds: float
) -> CampaignResult:
    """Choose, register, promote, report; everything but the parent runs' end."""
    tasks = []
    for state in states:
        assert state.dense is not None
        given_up = {record.key for record in state.trials if site.house.is_gone(record.key)}
        choice = choose(state.trials, state.dense, site.spec.select, given_up)
        site.progress.line(f"{state.task.name}: {choice.sentence}")
        result = TaskResult(
            task=state.task.name,
            kind=state.task.kind,
            dense=state.dense,
            trials=state.trials,
            failed=state.failed,
            stopped=state.stopped,
            choice=choice,
            data=state.data.info,
            noisy_front=noisy_front(
                state.trials, state.dense, state.data.info, reference_drop(site.spec.select)
            ),
        )
        tasks.append(_promote(site, state, result, registry_uri))
    campaign = CampaignResult(
        name=site.spec.name,
        spec_hash=site.spec.digest(),
        started=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        tasks=tasks,
        hardware=hardware(site.available),
        across=across_tasks(tasks),
    )
    campaign.save(site.layout.result)
    local = site.spec.tracking.uri is None
    cards = kept_cards(site.layout, tasks)
    write_report(campaign, site.layout.report, against_plan(site.layout, campaign, local), cards)
    for path in (site.layout.result, site.layout.report):
        site.layout.mirror.push_file(path)
    _publish(site, states, campaign)
    return campaign


def _promote(site: Site, state: TaskState, result: TaskResult, registry_uri: str) -> TaskResult:
    chosen = next((r for r in state.trials if r.key == result.choice.key), None)
    if chosen is None:
        return result
    case = Case(
        spec=site.spec,
        task=state.task,
        record=chosen,
        dense=result.dense,
        data=site.layout.mirror.place(state.data.folder),
        data_hash=state.data.content_hash,
        why=result.choice.sentence,
    )
    try:
        # every step of it looks first whether it is done, so all of it can be done again
        registry = Registry(registry_uri, site.tracking.uri)
        promotion = site.tracking.patience.ask(
            register_and_promote, case, registry, machines.run_alone
        )
    except (CampaignError, LowRankError, RayTaskError) as error:
        # the trials' results stand whatever the registry does: they are reported, with this
        sentence = f"{case.name} was not promoted: {error}"
        promotion = Promotion(model=case.name, version=None, promoted=False, sentence=sentence)
    site.progress.line(f"{state.task.name}: {promotion.sentence}")
    card = site.layout.card(state.task.name)
    card.write_text(model_card(case, promotion), encoding="utf-8")
    site.layout.mirror.push_file(card)
    return replace(result, promotion=promotion)


def _publish(site: Site, states: list[TaskState], campaign: CampaignResult) -> None:
    """The report and each task's front, choice and dense figures, on its parent run."""
    for state, result in zip(states, campaign.tasks, strict=True):
        writer = site.tracking.writer(state.run_id)
        figure = site.layout.root / f"front-{result.task}.png"
        write_front_figure(result, figure)
        card = site.layout.card(result.task)
        for path in (figure, site.layout.report, site.layout.result, card):
            if path.exists():  # without a choice there is no card
                writer.artifact(path)
        metric = result.dense.metric.name
        writer.metrics({f"dense/test_{metric}": result.dense.test[metric]})
        writer.metrics({f"dense/validation_{metric}": result.dense.quality})
        tags = {"choice": result.choice.sentence}
        if result.promotion is not None:
            tags["promotion"] = result.promotion.sentence
        writer.tags(tags)
        front = result.noisy_front
        if front is not None:
            writer.metrics(front_metrics(front))
            writer.tags({"front.reference": facts(front.reference)})
        on_front = set(result.choice.front)
        for record in result.trials:
            if record.mlflow_run_id is None:
                continue
            trial = site.tracking.writer(record.mlflow_run_id)
            trial.tags(
                {
                    "pareto_front": str(record.key in on_front).lower(),
                    "chosen": str(record.key == result.choice.key).lower(),
                }
            )
            probability = front.probability_of(record.key) if front else None
            if probability is not None:
                trial.metrics({"front/probability": probability})


def front_metrics(front: NoisyFront) -> dict[str, float]:
    """What a task's run says of its front; names beside `front/probability` of a trial's run."""
    volume = front.volumes[-1].volume
    values = {
        "front/hypervolume": volume.value,
        "front/hypervolume_low": volume.low,
        "front/hypervolume_high": volume.high,
        "front/seed_noise": front.seed_noise,
    }
    return {name: value for name, value in values.items() if value is not None}


def hardware(available: dict[str, Any]) -> dict[str, Any]:
    """The driver's machine, and what the cluster has in all; no names."""
    import torch

    from lowrank.timing import fingerprint

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return fingerprint(device, torch.float32) | {
        "cluster_cpus": available.get("CPU", 0),
        "cluster_gpus": available.get("GPU", 0),
    }

"""From the spec's method to the library's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lowrank.currency import Currency, Latency, Macs, positions_per_token
from lowrank.gate import GateConfig
from lowrank.latency import latency_tables
from lowrank.methods import (
    Adaptive,
    Agp,
    FixedRank,
    FlopAgp,
    FlopL0,
    HeadsFfn,
    Method,
    NeuronL0,
    Start,
)
from lowrank.surgery import Match
from orchestrator.spec_method import MethodSpec
from orchestrator.tasks import TrainingTask
from orchestrator.workers import Workers

CURRENCY_LENGTH = 128
"""Tokens of the sequences on which uses are counted and latencies measured (or the task's limit);
that of the speed measurements."""


def make_method(spec: MethodSpec) -> Method:
    """The library's form of a method.

    Raises:
        KeyError: `from-scratch`, which prunes nothing.
    """
    makers = {
        "adaptive": _adaptive,
        "low-rank": _fixed_rank,
        "flop-l0": _flop_l0,
        "faithful": _faithful,
        "flop-agp": _flop_agp,
        "agp": _agp,
        "np-l0": _neuron_l0,
        "heads-ffn": _heads_ffn,
    }
    return makers[spec.kind](spec)


def check_layers(spec: MethodSpec, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise SurgeryError for layers that the method cannot prune."""
    if spec.kind != "from-scratch":
        make_method(spec).check(model, layers)


def _adaptive(spec: MethodSpec) -> Method:
    return Adaptive(
        **_common(spec),
        anneal_fraction=spec.anneal_fraction,
        gate_lr=spec.gate_lr,
        floor_fraction=spec.floor_fraction,
        start=spec.start,
        start_excess=spec.start_excess,
        rank_multiple=spec.rank_multiple,
    )


def _fixed_rank(spec: MethodSpec) -> Method:
    return FixedRank(
        density=spec.density,
        allocation=spec.allocation,
        floor_fraction=spec.floor_fraction,
        start=_start(spec),
        rank_multiple=spec.rank_multiple,
    )


def _flop_l0(spec: MethodSpec) -> Method:
    return FlopL0(
        **_hard_concrete(spec),
        start=_start(spec),
        floor_fraction=spec.floor_fraction,
        rank_multiple=spec.rank_multiple,
    )


def _faithful(spec: MethodSpec) -> Method:
    return FlopL0.faithful(
        **_common(spec),
        anneal_fraction=spec.anneal_fraction,
        gate_lr=spec.gate_lr,
        **_given(penalty_lr=spec.penalty_lr, init_open_prob=spec.init_open_prob),
    )


def _neuron_l0(spec: MethodSpec) -> Method:
    return NeuronL0(**_hard_concrete(spec))


def _heads_ffn(spec: MethodSpec) -> Method:
    return HeadsFfn(**_hard_concrete(spec), floor_fraction=spec.floor_fraction)


def _flop_agp(spec: MethodSpec) -> Method:
    return FlopAgp(
        **_common(spec),
        anneal_fraction=spec.anneal_fraction,
        scope=spec.scope,
        start=_start(spec),
        rank_multiple=spec.rank_multiple,
        **_given(gate_lr=spec.gate_lr),
    )


def _agp(spec: MethodSpec) -> Method:
    return Agp(
        **_common(spec),
        anneal_fraction=spec.anneal_fraction,
        scope=spec.scope,
        granularity=spec.granularity,
        block=spec.block,
        movement=spec.movement,
        **_given(gate_lr=spec.gate_lr),
    )


def _common(spec: MethodSpec) -> dict[str, Any]:
    return {"density": spec.density, "gated_steps": spec.gated_steps}


def _hard_concrete(spec: MethodSpec) -> dict[str, Any]:
    return _common(spec) | {
        "anneal_fraction": spec.anneal_fraction,
        "gate_lr": spec.gate_lr,
        "gate": GateConfig(
            temperature=spec.temperature,
            price_floor=spec.price_floor,
            **_given(init_open_prob=spec.init_open_prob),
        ),
        **_given(penalty_lr=spec.penalty_lr),
    }


def _start(spec: MethodSpec) -> Start:
    return Start(kind=spec.start, rank=spec.start_rank)


def _given(**fields: Any) -> dict[str, Any]:
    """Fields that the spec sets; the others keep the library's default."""
    return {name: value for name, value in fields.items() if value is not None}


def make_currency(
    budget: str,
    model: nn.Module,
    match: Match,
    task: TrainingTask,
    workers: Workers,
) -> Currency:
    """What the budget is counted in, for these layers of a model on this task's inputs."""
    if budget == "parameters":
        return Currency()
    inputs = {k: v.to(workers.device) for k, v in task.example_inputs(1, CURRENCY_LENGTH).items()}
    tokens = inputs["input_ids"].numel()
    positions = positions_per_token(model, match.multiplying, inputs, tokens)
    if budget == "macs":
        return Macs(positions, positions_per_token(model, match.embeddings, inputs, tokens))
    # one table for all: each worker's own would let their ranks drift apart
    return Latency(workers.gather(latency_tables(match.layers, positions, tokens))[0])

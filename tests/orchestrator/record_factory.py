"""Records as a campaign leaves them, made up but plausible: what the tests of reports read."""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

from orchestrator.campaign_records import CampaignResult, Choice, FailedTrial, Promotion, TaskResult
from orchestrator.records import CurvePoint, Densities, Metric, ModelRecord, Size, Speed

BITS = Metric(name="bits_per_character", higher_is_better=False)
ACCURACY = Metric(name="accuracy", higher_is_better=True)

FINGERPRINT = {
    "device": "cpu",
    "cpu": "AMD EPYC 7B13",
    "cores": 2,
    "threads": 2,
    "dtype": "float32",
    "torch": "2.13.0+cpu",
    "system": "Linux x86_64",
}
HARDWARE = FINGERPRINT | {"cluster_cpus": 2.0, "cluster_gpus": 0}

GPT2_SHAPES = {
    "attn.c_attn": (128, 384),
    "attn.c_proj": (128, 128),
    "mlp.c_fc": (128, 512),
    "mlp.c_proj": (512, 128),
}
BERT_SHAPES = {
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (384, 1536),
    "output.dense": (1536, 384),
}
ANNEAL, HOLD, FINETUNE = 200, 60, 500


def layer_shapes(kind: str) -> dict[str, tuple[int, int]]:
    prefix, blocks, shapes = (
        ("transformer.h.{}.", 4, GPT2_SHAPES)
        if kind == "language-modelling"
        else ("bert.encoder.layer.{}.", 6, BERT_SHAPES)
    )
    return {prefix.format(b) + name: s for b in range(blocks) for name, s in shapes.items()}


def make_key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def dense_size(kind: str) -> Size:
    prunable = sum(i * o for i, o in layer_shapes(kind).values())
    other = 45_056 if kind == "language-modelling" else 12_054_912
    total = prunable + other
    return Size(
        num_parameters=total,
        num_prunable=prunable,
        num_bytes=4 * total + 9_000,
        macs_per_token=float(prunable + 40_000),
    )


def make_size(kind: str, density: float) -> Size:
    dense = dense_size(kind)
    removed = dense.num_prunable - round(density * dense.num_prunable)
    return Size(
        num_parameters=dense.num_parameters - removed,
        num_prunable=dense.num_prunable - removed,
        num_bytes=dense.num_bytes - 4 * removed + 2_000,
        macs_per_token=dense.macs_per_token - removed,
    )


def make_speed(batch: int, speedup: float, dense_ms: float) -> Speed:
    compressed = dense_ms / speedup
    return Speed(
        batch=batch,
        length=128,
        dense_ms=dense_ms,
        compressed_ms=compressed,
        speedup=speedup,
        speedup_low=speedup * 0.97,
        speedup_high=speedup * 1.04,
        dense_spread_ms=dense_ms * 0.05,
        compressed_spread_ms=compressed * 0.06,
        throughput_dense=batch * 128 / dense_ms * 1e3,
        throughput_compressed=batch * 128 / compressed * 1e3,
        repeats=9,
        fingerprint=dict(FINGERPRINT),
    )


def make_ranks(kind: str, density: float, noise: random.Random) -> dict[str, dict[str, int]]:
    ranks = {}
    for name, (inputs, outputs) in layer_shapes(kind).items():
        break_even = inputs * outputs / (inputs + outputs)
        share = density * noise.uniform(0.55, 1.5) * (0.7 if "attn" in name else 1.15)
        ranks[name] = {
            "rank": min(inputs, outputs) if share >= 1 else max(1, int(share * break_even)),
            "full_rank": min(inputs, outputs),
            "in_features": inputs,
            "out_features": outputs,
            "dense": int(share >= 1),
        }
    return ranks


def make_curve(
    density: float, rate: float, quality: float, dense: float, sign: int
) -> list[CurvePoint]:
    """Anneal, hold and fine-tune, a point every ten steps; a low rate lags behind the target."""
    points, lambda_linear, lambda_quadratic = [], 0.0, 0.0
    noise = random.Random(repr((density, rate)))
    for step in range(0, ANNEAL + HOLD + FINETUNE + 1, 10):
        gated = step <= ANNEAL + HOLD
        target = 1 - (1 - density) * min(1.0, step / ANNEAL)
        lag = (1 - density) * 0.35 * math.exp(-6 * rate) * math.exp(-max(0, step - ANNEAL) / 40)
        expected = min(1.0, target + lag * min(1.0, step / 60)) if gated else density
        lambda_linear += rate * 10 * (expected - target)
        lambda_quadratic += rate * 10 * (expected - target) ** 2
        excess = 0.12 if gated else 0.1 * math.exp(-(step - ANNEAL - HOLD) / 90)
        worse = quality * (1 + sign * excess)
        level = dense + (worse - dense) * min(1.0, step / ANNEAL)
        points.append(
            CurvePoint(
                step=step,
                phase="anneal" if step <= ANNEAL else "hold" if gated else "finetune",
                seconds=0.05 * step,
                train_loss=(level if sign > 0 else 1.2 - level)
                * math.log(2)
                * (1 + noise.gauss(0, 0.012)),
                validation=level if step % 100 == 60 else None,
                learning_rate=1e-3,
                expected_density=expected if gated else None,
                target_density=target if gated else None,
                lambda_linear=lambda_linear if gated else None,
                lambda_quadratic=lambda_quadratic if gated else None,
                undecided=max(0.0, 0.2 - step / ANNEAL / 5) if gated else None,
            )
        )
    return points


def make_dense(
    kind: str = "language-modelling", task: str = "docs-lm", **changes: Any
) -> ModelRecord:
    metric, quality = (BITS, 2.104) if kind == "language-modelling" else (ACCURACY, 0.9142)
    fields: dict[str, Any] = {
        "key": make_key("dense", task),
        "task": task,
        "metric": metric,
        "validation": {metric.name: quality},
        "test": {metric.name: quality * 1.01},
        "size": dense_size(kind),
        "seed": 7,
        "workers": 2,
        "train_seconds": 61.0,
        "curve": [CurvePoint(step=600, phase="dense", seconds=61.0, train_loss=1.43)],
        "export": f"/runs/{task}/dense",
        "export_sha256": "0" * 64,
    }
    return ModelRecord(**(fields | changes))


def make_trial(
    density: float = 0.3,
    penalty_lr: float = 0.1,
    kind: str = "language-modelling",
    task: str = "docs-lm",
    **changes: Any,
) -> ModelRecord:
    """One trial whose quality falls with density, and with the distance from penalty_lr 0.1."""
    dense = make_dense(kind, task)
    noise = random.Random(repr((density, penalty_lr, task)))
    drop = 0.10 * (1 - density) ** 3 + 0.012 * abs(math.log10(penalty_lr / 0.1)) - 0.008
    drop += noise.gauss(0, 0.002)
    sign = -1 if dense.metric.higher_is_better else 1
    quality = dense.quality * (1 + sign * drop)
    size = make_size(kind, density)
    speedup = 1 / (0.42 + 0.58 * density) * noise.uniform(0.97, 1.03)
    before = dense.quality * (1 + sign * (drop + 0.04))
    fields: dict[str, Any] = {
        "key": make_key(task, density, penalty_lr),
        "task": task,
        "metric": dense.metric,
        "validation": {dense.metric.name: quality},
        "test": {dense.metric.name: quality * (1 + sign * 0.01)},
        "size": size,
        "seed": 7,
        "workers": 2,
        "train_seconds": 83.0,
        "curve": make_curve(density, penalty_lr, quality, dense.quality, sign),
        "export": f"/runs/{task}/{density}",
        "export_sha256": make_key("export", density, penalty_lr) * 4,
        "config": {
            "kind": "flop-l0",
            "density": density,
            "penalty_lr": penalty_lr,
            "budget": "parameters",
            "steps": ANNEAL + HOLD + FINETUNE,
            "gated_fraction": (ANNEAL + HOLD) / (ANNEAL + HOLD + FINETUNE),
            "anneal_fraction": ANNEAL / (ANNEAL + HOLD),
            "distill": 0.5,
        },
        "densities": Densities.of(size, dense.size),
        "ranks": make_ranks(kind, density, noise),
        "projection": {
            "validation_before": before,
            "validation_after": before * (1 + sign * 0.03),
            "expected_density": density + 0.013,
            "realized_density": density,
        },
        "speed": [
            make_speed(1, 1 + (speedup - 1) * 0.4, 6.1),
            make_speed(32, speedup, 88.0),
        ],
        "mlflow_run_id": make_key("run", density, penalty_lr) * 2,
    }
    return ModelRecord(**(fields | changes))


def make_trials(kind: str = "language-modelling", task: str = "docs-lm") -> list[ModelRecord]:
    return [
        make_trial(density, rate, kind, task)
        for density in (0.5, 0.4, 0.3, 0.2)
        for rate in (0.02, 0.1, 0.5)
    ]


def make_promotion(task: str, metric: Metric, promoted: bool) -> Promotion:
    test = 2.151 if metric == BITS else 0.8861
    speedup = "1.62x" if promoted else "1.13x"
    return Promotion(
        model=f"small-fleet-{task}",
        version="3",
        promoted=promoted,
        sentence=(
            f"small-fleet-{task} version 3 is champion: all 3 checks passed; "
            "version 2 is kept as previous"
            if promoted
            else f"small-fleet-{task} version 3 stays candidate: "
            f"speedup >= 1.2 @ batch 32 must hold, got {speedup}"
        ),
        checks=[
            {
                "rule": f"test {metric.name} of the downloaded artifact within 0.0001 of record",
                "value": f"{test:.6f}, recorded {test:.6f}",
                "passed": True,
            },
            {"rule": "quality_drop <= 4%", "value": "1.2%", "passed": True},
            {"rule": "speedup >= 1.2 @ batch 32", "value": speedup, "passed": promoted},
        ],
        reproduced={metric.name: test},
    )


def make_task_result(
    trials: list[ModelRecord],
    dense: ModelRecord,
    choice: Choice,
    kind: str = "language-modelling",
    **changes: Any,
) -> TaskResult:
    fields: dict[str, Any] = {
        "task": dense.task,
        "kind": kind,
        "dense": dense,
        "trials": trials,
        "failed": [
            FailedTrial(
                key=make_key("failed", dense.task),
                task=dense.task,
                config={"density": 0.2, "penalty_lr": 0.87},
                reason="DivergenceError: train loss was NaN at step 214, after 2 retries",
            )
        ],
        "choice": choice,
        "promotion": make_promotion(
            dense.task, dense.metric, promoted=kind == "language-modelling"
        ),
        "data": {
            "source": "python-docs",
            "train": 1_804_211,
            "validation": 200_104,
            "test": 199_870,
            "hash": "5b1e0d7c9a3f4e21",
        },
    }
    return TaskResult(**(fields | changes))


def make_campaign(tasks: list[TaskResult], **changes: Any) -> CampaignResult:
    fields: dict[str, Any] = {
        "name": "small-fleet",
        "spec_hash": "9f86d081884c7d65",
        "started": "2026-01-15T09:12:44+00:00",
        "seconds": 4127.0,
        "tasks": tasks,
        "hardware": dict(HARDWARE),
    }
    return CampaignResult(**(fields | changes))

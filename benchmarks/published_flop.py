"""Our presets beside the published package `flop` 1.0.2: same parent, data, steps and rates.

    pip install --no-deps flop==1.0.2
    lowrank compress SPEC --task TASK --output OUT            # makes OUT/dense, the common parent
    python benchmarks/published_flop.py SPEC --task TASK --dense OUT/dense --density 0.3

The package's gate and linear modules are used as they are; its trainer needs a framework that no
longer installs, so its training step is written out here (two optimizers ascend and descend, the
target falls linearly) and the framework's names are stubbed. One line per run, JSON, on stdout;
`--append FILE` keeps them. A run that is in the file already is skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.factorize import factorize
from lowrank.hf import load_pretrained
from lowrank.linear import dense_weight, layer_shape
from lowrank.schedule import warmup_cosine
from lowrank.surgery import find_layers, replace_layers
from lowrank.weight_groups import weight_groups
from orchestrator.data.prepare import prepare_data
from orchestrator.layout import Layout
from orchestrator.models import resolve_pretrained
from orchestrator.spec_io import load_spec
from orchestrator.tasks import TrainingTask, make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers


def published_modules() -> Any:
    """The package's modules, with its dead dependency stubbed."""
    for name in (
        "flambe",
        "flambe.nn",
        "flambe.logging",
        "flambe.metric",
        "flambe.sampler",
        "flambe.dataset",
        "flambe.learn",
        "flambe.optim",
    ):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["flambe.nn"].Module = nn.Module
    sys.modules["flambe.logging"].log = lambda *_: None
    sys.modules["flambe.logging"].log_histogram = lambda *_: None
    for module, names in {
        "metric": ["Metric"],
        "sampler": ["Sampler"],
        "dataset": ["Dataset"],
        "learn": ["Trainer"],
        "optim": ["NoamScheduler"],
    }.items():
        for name in names:
            setattr(sys.modules[f"flambe.{module}"], name, type(name, (), {}))
    try:
        import flop.linear
    except ImportError:
        sys.exit("the published package is missing: pip install --no-deps flop==1.0.2")
    return flop.linear


def insert(model: nn.Module, spec: Any, published: Any, init_mean: float) -> dict[str, nn.Module]:
    """Its gated layers in place of ours, from the SVD of the parent's weights."""
    layers = find_layers(model, spec.include, spec.exclude).layers
    made = {}
    for name, layer in layers.items():
        shape = layer_shape(layer)
        rank = shape.num_dense // shape.num_per_component
        factors = factorize(dense_weight(layer), rank)
        gated = published.HardConcreteProjectedLinear(
            shape.in_features,
            shape.out_features,
            bias=layer.bias is not None,
            init_mean=init_mean,
            proj_features=rank,
        )
        with torch.no_grad():
            gated.weight.copy_(factors.down.t())
            gated.weight_proj.copy_(factors.up.t())
            if layer.bias is not None:
                gated.bias.copy_(layer.bias)
        made[name] = gated
    by_identity = {id(layers[name]): gated for name, gated in made.items()}
    replace_layers(model, lambda _, module: by_identity.get(id(module)))
    return made


def train(
    model: nn.Module,
    gated: dict[str, nn.Module],
    num_dense: int,
    task: TrainingTask,
    options: argparse.Namespace,
) -> None:
    """The package's training step: penalty on the expected size, multipliers by ascent."""
    masks = [layer.mask.log_alpha for layer in gated.values()]
    known = {id(mask) for mask in masks}
    groups = [
        group | {"params": [p for p in group["params"] if id(p) not in known]}
        for group in weight_groups(model.parameters(), options.learning_rate, 0.01)
    ]
    # decay apart from Adam's moments, as in our own loop: within them it drowns clipped gradients
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    gates = torch.optim.Adam(masks, lr=options.gate_lr or 30 / options.steps)
    multipliers = torch.zeros(2, requires_grad=True)
    ascent = torch.optim.Adam([multipliers], lr=options.penalty_lr, maximize=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(options.steps):
        model.train()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * warmup_cosine(step, options.steps)
        loss = task.loss(model, task.batch(step, 0, 1))
        size = sum(layer.num_parameters(train=True) for layer in gated.values()) / num_dense
        progress = min(1.0, step / (options.anneal_fraction * options.steps))
        target = 1 - (1 - options.density) * progress
        violation = size - target
        (loss + multipliers[0] * violation + multipliers[1] * violation**2).backward()
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for each in (optimizer, gates, ascent):
            each.step()
            each.zero_grad()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}: loss {float(loss):.3f} nats, density {float(size):.3f} "
                f"(target {target:.3f}), lambda {multipliers.tolist()}",
                file=sys.stderr,
            )


def main() -> None:
    """Train one model with the published modules and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--dense", type=Path, required=True, help="export of the common parent")
    parser.add_argument("--density", type=float, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--anneal-fraction", type=float, default=0.75)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--penalty-lr", type=float, default=0.2)
    parser.add_argument("--gate-lr", type=float, default=None, help="default 30 / steps")
    parser.add_argument("--init-mean", type=float, default=0.1, help="the package's drop rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--append", type=Path, help="JSON lines")
    options = parser.parse_args()
    key = {k: str(v) for k, v in vars(options).items() if k != "append"}
    if options.append and options.append.exists():
        lines = options.append.read_text(encoding="utf-8").splitlines()
        if any(json.loads(line)["options"] == key for line in lines):
            print("already there", file=sys.stderr)
            return
    campaign = load_spec(options.spec)
    spec = campaign.task(options.task)
    cache = Layout(Path(campaign.storage), campaign.name).cache
    data = prepare_data(spec, cache, resolve_pretrained(spec.model))
    task = make_task(spec, data, options.seed)
    torch.manual_seed(options.seed)
    model = load_pretrained(options.dense)
    method = campaign.method_of(spec)
    layers = find_layers(model, method.include, method.exclude).layers
    num_dense = sum(layer_shape(layer).num_dense for layer in layers.values())
    gated = insert(model, method, published_modules(), options.init_mean)
    started = time.perf_counter()
    train(model, gated, num_dense, task, options)
    seconds = time.perf_counter() - started
    workers = LocalWorkers()
    validation = evaluate(model, task, workers, "validation")
    test = evaluate(model, task, workers, "test")
    stored = sum(float(layer.num_parameters(train=False)) for layer in gated.values())
    result = {
        "options": key,
        "validation": validation[task.metric.name],
        "test": test[task.metric.name],
        "density": stored / num_dense,
        "train_seconds": round(seconds, 1),
    }
    line = json.dumps(result)
    print(line)
    if options.append:
        with options.append.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()

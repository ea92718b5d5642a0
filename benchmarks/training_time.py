"""How long a pruning run takes: three trainings of one encoder, a step of each in turns.

    python benchmarks/training_time.py

Dense fine-tuning; `adaptive` from its start to its last recovery step, with components that leave
when their gates are shut; and gates on all components of full-rank factors, kept to the end, which
is what the method costs without starting small, shrinking and projecting. Prints a
Markdown table of seconds per step by phase, and of the whole runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lowrank import Adaptive, FlopL0, Pruner
from lowrank.moments import collect_moments
from lowrank.surgery import find_layers
from lowrank.timing import fingerprint, num_threads, quartiles

INCLUDE = ["*encoder.layer*"]
Step = tuple[str, Callable[[], None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64, help="tokens per sequence")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with num_threads(None):
        print(", ".join(f"{k} {v}" for k, v in fingerprint(device, torch.float32).items()))
        print(", ".join(f"{k} {v}" for k, v in vars(arguments).items()) + "\n", flush=True)
        report(measure(arguments, device))


def measure(arguments: argparse.Namespace, device: torch.device) -> list[tuple[str, list[float]]]:
    """Per step the phase of the pruning run, and the seconds of the three trainings."""
    batches = [batch(arguments, device, seed) for seed in range(8)]
    runs = [
        dense(arguments, batches, device),
        adaptive(arguments, batches, device),
        static(arguments, batches, device),
    ]
    rows = []
    for number, steps in enumerate(zip(*runs, strict=True)):
        seconds = [0.0] * len(steps)
        order = list(range(len(steps)))
        for which in order if number % 2 else reversed(order):
            wait(device)
            started = time.perf_counter()
            steps[which][1]()
            wait(device)
            seconds[which] = time.perf_counter() - started
        rows.append((steps[1][0], seconds))
    return rows


def report(rows: list[tuple[str, list[float]]]) -> None:
    print("| phase | steps | dense | adaptive | full rank | dense / adaptive | full / adaptive |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    phases = list(dict.fromkeys(phase for phase, _ in rows))
    for phase in [*phases, "all"]:
        found = [seconds for name, seconds in rows if phase in (name, "all")]
        times = [
            sum(s[k] for s in found) if phase == "all" else median(s[k] for s in found)
            for k in range(3)
        ]
        cells = [f"{value:.2f} s" if phase == "all" else f"{value * 1e3:.0f} ms" for value in times]
        if phase == "all":
            ratios = [f"{times[k] / times[1]:.2f}" for k in (0, 2)]
        else:
            ratios = [spread([s[k] / s[1] for s in found]) for k in (0, 2)]
        print(f"| {phase} | {len(found)} | " + " | ".join([*cells, *ratios]) + " |")


def spread(values: list[float]) -> str:
    low, high = quartiles(values)
    return f"{median(values):.2f} ({low:.2f}-{high:.2f})"


def encoder(arguments: argparse.Namespace, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8000,
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.width // 32),
        intermediate_size=4 * arguments.width,
        num_labels=2,
    )
    return BertForSequenceClassification(config).to(device)


def batch(
    arguments: argparse.Namespace, device: torch.device, seed: int
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (arguments.batch, arguments.length)
    ids = torch.randint(0, 8000, shape, generator=generator)
    labels = torch.randint(0, 2, shape[:1], generator=generator)
    return {"input_ids": ids.to(device), "labels": labels.to(device)}


def dense(arguments, batches, device) -> Iterator[Step]:  # type: ignore[no-untyped-def]
    model = encoder(arguments, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(arguments.steps):
        yield "dense", lambda s=step: one_step(model, batches[s % len(batches)], optimizer)


def adaptive(arguments, batches, device) -> Iterator[Step]:  # type: ignore[no-untyped-def]
    model = encoder(arguments, device)
    found = find_layers(model, INCLUDE).layers
    inputs = [{k: v for k, v in b.items() if k != "labels"} for b in batches]
    moments = {n: m.moments() for n, m in collect_moments(model, found, inputs).items()}
    gated = round(0.4 * arguments.steps)  # the part that a spec gives by default
    method = Adaptive(density=arguments.density, gated_steps=gated)
    pruner = Pruner(model, method, INCLUDE, moments=moments)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-4))
    every = max(1, gated // 20)

    def gated_step(step: int) -> None:
        one_step(pruner.model, batches[step % len(batches)], optimizer, pruner)
        if (step + 1) % every == 0:
            pruner.shrink(optimizer)

    for step in range(gated):
        phase = "anneal" if pruner.target > arguments.density else "hold"
        yield phase, lambda s=step: gated_step(s)
    small = pruner.finish()
    recovery = torch.optim.AdamW(small.parameters(), lr=1e-4)
    for step in range(gated, arguments.steps):
        yield "recovery", lambda s=step: one_step(small, batches[s % len(batches)], recovery)


def static(arguments, batches, device) -> Iterator[Step]:  # type: ignore[no-untyped-def]
    model = encoder(arguments, device)
    method = FlopL0(density=arguments.density, gated_steps=arguments.steps)
    pruner = Pruner(model, method, INCLUDE)
    # as the factors of a full rank are: two products, whatever their size
    for layer in pruner.layers.values():
        layer._is_cheaper_multiplied_out = lambda rows: False
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-4))
    for step in range(arguments.steps):
        yield (
            "gated",
            lambda s=step: one_step(pruner.model, batches[s % len(batches)], optimizer, pruner),
        )


def one_step(model, inputs, optimizer, pruner=None) -> None:  # type: ignore[no-untyped-def]
    loss = model(**inputs).loss
    if pruner is not None:
        loss = loss + pruner.penalty()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if pruner is not None:
        pruner.step()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

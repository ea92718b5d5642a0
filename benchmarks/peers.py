"""Ours beside other ways to make an encoder smaller: one model, one run, the same inputs.

    pip install -e ".[bench]"
    python benchmarks/peers.py --density 0.5 --density 0.3 --density 0.1 --out peers.json \
        --markdown peers.md

Compared with the dense model: SVD truncation by hand (two nn.Linear for each), this package's
one-shot truncation with calibration, Torch-Pruning (narrower heads and feed-forward layers by
magnitude), torch's dynamic 8-bit integers alone and on top of our factors. Nothing is trained
after. Figures are latency in interleaved rounds, size, and the error of the last hidden state on
inputs that were not calibrated on. Weights are random unless a BERT checkpoint is given: their
spectrum is flat, which no truncation likes; speed does not depend on it.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lowrank import FixedRank, Pruner, collect_moments, find_layers, replace_layers
from lowrank.allocator import reuse_memory
from lowrank.benchmark.environment import environment
from lowrank.benchmark.results import save
from lowrank.benchmark.subjects import HEADS, uniform_rank
from lowrank.benchmark.tables import TextTable, mark
from lowrank.counting import count_macs, num_parameters
from lowrank.errors import LowRankError
from lowrank.int8 import num_int8_bytes, quantize_int8
from lowrank.linear import layer_shape
from lowrank.timing import check_repeats, num_threads, paired_ratio, time_rounds

CALIBRATION_BATCHES = 8
Inputs = dict[str, Tensor]


def main() -> None:
    """Make, time and write."""
    options = arguments()
    reuse_memory()
    check_repeats(options.repeats)
    torch.manual_seed(options.seed)
    dense = encoder(options)
    calibration = [inputs(dense, options, 1 + seed) for seed in range(CALIBRATION_BATCHES)]
    measured = []
    with num_threads(options.threads):
        for density in options.density:
            print(f"density {density:g}", flush=True)
            models = dict(peers(dense, density, calibration))
            for row in compare(models, inputs(dense, options, 0), options):
                measured.append({"density": density, **row})
        print_ = environment(torch.device("cpu"), torch.float32)
    print_["torch-pruning"] = version("torch-pruning")
    settings = {key: value for key, value in vars(options).items() if key not in FILES}
    result = {"fingerprint": print_, "settings": settings, "rows": measured}
    text = page(result)
    print(text)
    if options.out:
        save(result, options.out)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


FILES = ("out", "markdown")


def arguments() -> argparse.Namespace:
    """By default an encoder of BERT-base's size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--density", type=float, action="append", required=True)
    parser.add_argument("--pretrained", help="folder of a BERT checkpoint, in place of the sizes")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--inner", type=int, default=3072)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="default: all cores of this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args()


def encoder(options: argparse.Namespace) -> Any:
    """A BERT classifier, float32, on the CPU."""
    from transformers import BertConfig, BertForSequenceClassification

    if options.pretrained:
        return BertForSequenceClassification.from_pretrained(options.pretrained).float().eval()
    config = BertConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.inner,
        max_position_embeddings=max(512, options.length),
    )
    return BertForSequenceClassification(config).eval()


def inputs(model: Any, options: argparse.Namespace, seed: int) -> Inputs:
    """Random tokens, full rows."""
    generator = torch.Generator().manual_seed(options.seed * 1000 + seed)
    shape = (options.batch, options.length)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def peers(dense: Any, density: float, calibration: list[Inputs]) -> Iterator[tuple[str, nn.Module]]:
    """Every model of one density, by name; dense first."""
    yield "dense", dense
    yield "SVD by hand", svd_by_hand(dense, density)
    ours = calibrated(dense, density, calibration)
    yield "lowrank", ours
    yield "Torch-Pruning", torch_pruned(dense, density, calibration[0])
    yield "int8", quantize_int8(dense)
    yield "lowrank + int8", quantize_int8(ours)


def svd_by_hand(dense: nn.Module, density: float) -> nn.Module:
    """What one writes in ten lines: truncated SVD, two nn.Linear in a Sequential."""
    model = copy.deepcopy(dense)
    chosen = {id(layer) for layer in find_layers(model, exclude=HEADS).layers.values()}

    def make(_: str, layer: nn.Module) -> nn.Module | None:
        if id(layer) not in chosen:
            return None
        assert isinstance(layer, nn.Linear)
        rank = uniform_rank(layer_shape(layer), density)
        left, values, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        down = nn.Linear(layer.in_features, rank, bias=False)
        up = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        with torch.no_grad():
            down.weight.copy_(values[:rank].sqrt()[:, None] * right[:rank])
            up.weight.copy_(left[:, :rank] * values[:rank].sqrt())
            if layer.bias is not None:
                up.bias.copy_(layer.bias)
        return nn.Sequential(down, up)

    return replace_layers(model, make).eval()


def calibrated(dense: nn.Module, density: float, calibration: list[Inputs]) -> nn.Module:
    """This package without training: uniform ranks, factors closest in the layers' outputs."""
    model = copy.deepcopy(dense)
    layers = find_layers(model, exclude=HEADS).layers
    sums = collect_moments(model, layers, calibration)
    moments = {name: seen.moments() for name, seen in sums.items()}
    pruner = Pruner(model, FixedRank(density=density), exclude=HEADS, moments=moments)
    return pruner.finish().eval()


def torch_pruned(dense: Any, density: float, example: Inputs) -> Any:
    """Torch-Pruning (Fang et al. 2023, arXiv 2301.12900): every head and every feed-forward layer
    loses the same fraction of its width, those of least magnitude; the residual stream keeps its
    width. The matrices shrink in proportion, so the fraction is 1 - density."""
    import torch_pruning

    model = copy.deepcopy(dense)
    blocks = model.bert.encoder.layer
    heads = model.config.num_attention_heads
    attentions = [block.attention.self for block in blocks]
    projections = [layer for a in attentions for layer in (a.query, a.key, a.value)]
    narrowed = {id(layer) for layer in (*projections, *(b.intermediate.dense for b in blocks))}
    others = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in narrowed]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        {name: tensor[:1] for name, tensor in example.items()},
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=1 - density,
        num_heads=dict.fromkeys(projections, heads),
        prune_head_dims=True,
        ignored_layers=others,
        root_module_types=[nn.Linear],
        output_transform=lambda output: output.logits.sum(),
    )
    pruner.step()
    for attention in attentions:
        attention.attention_head_size = attention.query.out_features // heads
        attention.all_head_size = attention.query.out_features
    return model.eval()


def compare(
    models: dict[str, nn.Module], batch: Inputs, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Latency in turns, size and error of every model; JSON."""
    calls: list[Callable[[], object]] = [_call(model, batch) for model in models.values()]
    with torch.inference_mode():
        states = {name: hidden(model, batch) for name, model in models.items()}
        seconds = dict(zip(models, time_rounds(calls, options.repeats), strict=True))
    dense_macs = count_macs(_call(models["dense"], batch))
    return [
        {
            "model": name,
            "samples_ms": [1e3 * second for second in seconds[name]],
            "median_ms": 1e3 * median(seconds[name]),
            "speedup": asdict(paired_ratio(seconds["dense"], seconds[name], options.seed)),
            # the counter sees no products of integers
            "promised": None if "int8" in name else dense_macs / count_macs(_call(model, batch)),
            "bytes": num_int8_bytes(model) if "int8" in name else 4 * num_parameters(model),
            "block_density": None if "int8" in name else block_density(model, models["dense"]),
            "error": relative_error(states[name], states["dense"]),
        }
        for name, model in models.items()
    ]


def hidden(model: Any, batch: Inputs) -> Tensor:
    """Last hidden state, [batch, length, width]."""
    return model.bert(**batch).last_hidden_state


def block_density(model: Any, dense: Any) -> float:
    """Weights of the blocks' matrices over those of the dense blocks."""
    counts = [
        sum(p.numel() for p in each.bert.encoder.parameters() if p.ndim > 1)
        for each in (model, dense)
    ]
    return counts[0] / counts[1]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm."""
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    if error != error:
        raise LowRankError("a model's output is not finite")
    return error


def page(result: dict[str, Any]) -> str:
    """Facts and a table, in Markdown."""
    rows = []
    for row in result["rows"]:
        ratio, promised, kept = row["speedup"], row["promised"], row["block_density"]
        reference = row["model"] == "dense"
        rows.append(
            [
                f"{row['density']:g}",
                row["model"],
                f"{row['median_ms']:.2f}",
                f"{ratio['median']:.2f}x",
                "" if reference else f"{ratio['low']:.2f}-{ratio['high']:.2f}",
                "" if promised is None else f"{promised:.2f}x",
                f"{row['bytes'] / 2**20:.1f}",
                "" if kept is None else f"{kept:.2%}",
                f"{row['error']:.2e}",
                "" if reference else mark(ratio),
            ]
        )
    headings = ["density", "model", "ms", "speed-up", "interval", "promised", "MiB"]
    headings += ["blocks kept", "error", ""]
    settings = json.dumps(result["settings"])
    facts = "; ".join(f"{key} {value}" for key, value in result["fingerprint"].items())
    table = TextTable(title="Peers", headings=headings, rows=rows, note=f"Settings: {settings}")
    return f"Measured with: {facts}.\n\n{table.markdown()}\n"


def _call(model: nn.Module, batch: Inputs) -> Callable[[], object]:
    return lambda: model(**batch)


if __name__ == "__main__":
    main()

"""What a rank that is no multiple of eight costs: pairs of products of neighbouring ranks in turns.

    python benchmarks/alignment.py

Prints a Markdown table: time of a rank over the time of the multiple above it, which does more
arithmetic; median and quartiles of paired rounds. Above 1 the smaller rank is the slower one.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import nn

from lowrank.bench import fingerprint, num_threads, quartiles, time_rounds
from lowrank.linear import LowRankLinear

SHAPES = [(384, 384), (384, 1536), (768, 768), (768, 3072)]
RANKS = [(36, 40), (61, 64), (93, 96), (97, 104), (115, 120), (155, 160)]
"""A rank and the multiple of eight above it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with num_threads(None), torch.inference_mode():
        print(", ".join(f"{k} {v}" for k, v in fingerprint(device, dtype).items()) + "\n")
        print("| matrix | tokens | " + " | ".join(f"{a} / {b}" for a, b in RANKS) + " |")
        print("| --- |" + " --- |" * (len(RANKS) + 1))
        for width, height in SHAPES:
            for tokens in arguments.tokens:
                x = torch.randn(tokens, width, device=device, dtype=dtype)
                cells = (compare(x, height, pair, arguments.repeats) for pair in RANKS)
                print(f"| {width} x {height} | {tokens} | {' | '.join(cells)} |", flush=True)


def compare(x: torch.Tensor, height: int, ranks: tuple[int, int], repeats: int) -> str:
    """Median and quartiles of time at the first rank over time at the second."""
    layers: list[nn.Module] = [
        LowRankLinear(x.shape[1], height, rank, device=x.device, dtype=x.dtype) for rank in ranks
    ]
    wait = torch.cuda.synchronize if x.device.type == "cuda" else None
    odd, even = time_rounds([partial(layer, x) for layer in layers], repeats, wait)
    ratios = [a / b for a, b in zip(odd, even, strict=True)]
    low, high = quartiles(ratios)
    return f"{sorted(ratios)[len(ratios) // 2]:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()

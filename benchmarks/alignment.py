"""Which ranks a processor likes: pairs of factors of neighbouring ranks, timed in turns.

    python benchmarks/alignment.py

Prints a Markdown table: time per component at a rank over that at rank 128, medians over rounds. At
a rank that the processor likes as much as 128 it is 1; the same arithmetic takes longer above it.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median

import torch

from lowrank.linear import LowRankLinear
from lowrank.timing import fingerprint, num_threads, time_rounds

SHAPES = [(384, 384), (384, 1536), (768, 768), (768, 3072)]
RANKS = (61, 64, 72, 80, 88, 93, 96, 97, 104, 112, 115, 120, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with num_threads(None), torch.inference_mode():
        print(", ".join(f"{k} {v}" for k, v in fingerprint(device, dtype).items()) + "\n")
        print("| matrix | tokens | " + " | ".join(map(str, RANKS)) + " |")
        print("| --- |" + " --- |" * (len(RANKS) + 1))
        for width, height in SHAPES:
            for tokens in arguments.tokens:
                x = torch.randn(tokens, width, device=device, dtype=dtype)
                cells = compare(x, height, arguments.repeats)
                print(f"| {width} x {height} | {tokens} | {' | '.join(cells)} |", flush=True)


def compare(x: torch.Tensor, height: int, repeats: int) -> list[str]:
    """Median over the rounds of the time per component, relative to that of the last rank."""
    layers = [
        LowRankLinear(x.shape[1], height, rank, device=x.device, dtype=x.dtype) for rank in RANKS
    ]
    wait = torch.cuda.synchronize if x.device.type == "cuda" else None
    times = time_rounds([partial(layer, x) for layer in layers], repeats, wait)
    cells = []
    for rank, samples in zip(RANKS, times, strict=True):
        ratios = [s / last for s, last in zip(samples, times[-1], strict=True)]
        cells.append(f"{median(ratios) * RANKS[-1] / rank:.2f}")
    return cells


if __name__ == "__main__":
    main()

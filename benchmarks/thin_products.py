"""What the bias costs beside a product over few features, on a CPU.

    python benchmarks/thin_products.py

Prints a Markdown table. For a batch of tokens and the second factor of a layer: milliseconds of
torch's linear layer with its bias, the billions of multiply-accumulates a second that it makes, and
the time of two others relative to it, paired: the product without a bias, and with the bias added
in place after it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch.nn import functional as F

from lowrank.allocator import reuse_memory
from lowrank.benchmark.environment import environment
from lowrank.timing import num_threads, paired_ratio, time_rounds

SHAPES = [(32, 768), (56, 3072), (192, 768), (304, 3072)]
"""(rank, out) of an encoder of BERT-base's size at densities 0.1 and 0.5."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 2048])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    reuse_memory()
    torch.manual_seed(0)
    with num_threads(None), torch.inference_mode():
        print_ = environment(torch.device("cpu"), torch.float32)
        print(", ".join(f"{k} {v}" for k, v in print_.items()) + "\n")
        print("| tokens | rank | out | linear ms | billion MAC/s | no bias | bias after |")
        print("| --- |" + " --- |" * 6)
        for tokens in options.tokens:
            for rank, height in SHAPES:
                print(row(tokens, rank, height, options.repeats), flush=True)


def row(tokens: int, rank: int, height: int, repeats: int) -> str:
    """One line of the table."""
    hidden, up, bias = torch.randn(tokens, rank), torch.randn(height, rank), torch.randn(height)
    calls: list[Callable[[], object]] = [
        partial(F.linear, hidden, up, bias),
        partial(F.linear, hidden, up),
        lambda: F.linear(hidden, up).add_(bias),
    ]
    linear, without, after = time_rounds(calls, repeats)
    seconds = median(linear)
    cells = [f"{tokens}", f"{rank}", f"{height}", f"{seconds * 1e3:.3f}"]
    cells.append(f"{tokens * rank * height / seconds / 1e9:.0f}")
    for other in (without, after):
        ratio = paired_ratio(other, linear)
        cells.append(f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

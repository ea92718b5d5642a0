"""Formulas of evaluation; each says per what it counts."""

from __future__ import annotations

import math


def perplexity(total_nats: float, count: float) -> float:
    """exp(nats / count); per token or per word, whichever `count` counts. Infinity on overflow."""
    mean = total_nats / count
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def bits_per_character(total_nats: float, num_characters: float) -> float:
    """nats / characters / ln 2. Characters are Unicode characters, not bytes."""
    return total_nats / num_characters / math.log(2)

"""Small subjects that several tests share."""

from __future__ import annotations

from lowrank.benchmark.subjects import Subject, with_random_factors
from tests.lowrank import tiny_bert, tiny_gpt2


def tiny_encoder(density: float = 0.5) -> Subject:
    """Two layers 16 wide, ranks of any size."""
    dense = tiny_bert()
    small = with_random_factors(dense, density, rank_multiple=1)
    return Subject(name="tiny encoder", kind="encoder", dense=dense, compressed=small)


def tiny_decoder(density: float = 0.5) -> Subject:
    """Two layers 16 wide, 16 positions, ranks of any size."""
    dense = tiny_gpt2()
    small = with_random_factors(dense, density, rank_multiple=1)
    return Subject(name="tiny decoder", kind="decoder", dense=dense, compressed=small)

"""Models with embeddings that several tests share."""

from __future__ import annotations

import torch
from torch import nn

from lowrank import Pruner, find_layers
from lowrank.moments import collect_moments
from tests.lowrank import token_ids

TOKENS, WIDTH = 40, 16


def tiny_llama(tied, seed=0, padding=None):
    """Two layers 16 wide, weights of order 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        pad_token_id=padding,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


class Tagger(nn.Module):
    """A table, a hidden layer, and an output projection that may be the table."""

    def __init__(self, tied=True, padding=None, bias=True, rows=30, width=8):
        super().__init__()
        self.table = nn.Embedding(rows, width, padding_idx=padding)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, rows, bias=bias)
        if tied:
            self.output.weight = self.table.weight

    def forward(self, ids):
        return self.output(torch.tanh(self.hidden(self.table(ids))))


def tagger(seed=0, dtype=torch.float32, **fields):
    torch.manual_seed(seed)
    return Tagger(**fields).to(dtype).eval()


def ids(rows=6, length=5, tokens=30, seed=0):
    return torch.randint(0, tokens, (rows, length), generator=torch.Generator().manual_seed(seed))


def counts_of(tokens):
    """Frequencies as of text: few tokens have most of the occurrences."""
    return 1000.0 / torch.arange(1, tokens + 1) ** 1.5


def embedding_pruner(model, method, inputs=None, seed=11, **options):
    """A pruner with embeddings in its pool, and all that a start can know."""
    match = find_layers(model, embeddings=True, **options)
    inputs = {"input_ids": token_ids()} if inputs is None else inputs
    sums = collect_moments(model, match.multiplying, [inputs])
    moments = {name: found.moments() for name, found in sums.items()}
    counts = {name: counts_of(len(table.weight)) for name, table in match.embeddings.items()}
    return Pruner(
        model, method, embeddings=True, seed=seed, moments=moments, counts=counts, **options
    )

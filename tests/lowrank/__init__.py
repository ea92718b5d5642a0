"""Small models and measures that several tests share.

transformers is imported where it is used: a spawned worker that needs none starts faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lowrank

torch.set_num_threads(1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of `expected`."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def tiny_gpt2(seed: int = 0) -> nn.Module:
    """Two layers 16 wide, head tied to the embedding, no dropout, weights of order 1."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_bert(seed: int = 0, num_labels: int = 3) -> nn.Module:
    """Two layers 16 wide, no dropout, weights of order 1."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        num_labels=num_labels,
    )
    return BertForSequenceClassification(config).eval()


def token_ids(batch: int = 3, length: int = 8, seed: int = 0) -> Tensor:
    """[batch, length], for the two models above."""
    return torch.randint(0, 40, (batch, length), generator=torch.Generator().manual_seed(seed))


def mlp(seed: int = 0, width: int = 12, depth: int = 3) -> nn.Sequential:
    """Square layers with tanh between."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def scramble_gates(pruner: lowrank.Pruner, seed: int = 0, mean: float = 0.0) -> None:
    """Give every gate another log_alpha and every factor a little noise, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in pruner.layers.values():
            gate = layer.gate.log_alpha
            gate.copy_(mean + 2 * torch.randn(gate.shape, generator=generator))
            for factor in (layer.down, layer.up):
                noise = torch.randn(factor.shape, generator=generator)
                factor.add_(0.05 * noise.to(factor.dtype))


def batch(
    rows: int = 8, width: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Inputs and targets for `mlp`, [rows, width] each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=dtype)
    return x, torch.randn(rows, width, generator=generator, dtype=dtype)


def noises(pruner: lowrank.Pruner) -> Tensor:
    """Of all hard concrete gates, end to end."""
    return torch.cat([layer.gate.noise for layer in pruner.layers.values()])


def violating(pruner: lowrank.Pruner) -> lowrank.Pruner:
    """Multipliers off zero and gates half open: every part of the gradient counts."""
    scramble_gates(pruner)
    pruner.load_state_dict(
        {
            "lagrangian.lambda": torch.tensor([0.7, 3.0]),
            "lagrangian.exp_avg": torch.tensor([0.1, 0.01]),
            "lagrangian.exp_avg_sq": torch.tensor([0.01, 0.0001]),
            "lagrangian.step": torch.tensor(5.0),
            "step_index": torch.tensor(3),
        }
    )
    return pruner

"""Architectures of our own, in the form that transformers' Auto classes build and load.

Nothing is imported until `register()` is called: `import lowrank` needs no transformers.
"""

from __future__ import annotations

STATEFUL_TYPES = ("sru",)
"""Model types that take a `state` and return the next one: their configs say `carries_state`."""
CLUSTERED_TYPES = ("adaptive-decoder",)
"""Model types whose vocabulary is sorted by frequency and cut into clusters. They take `targets`
and return their loss without all logits: their configs say `takes_targets`."""


def register() -> None:
    """Make transformers' AutoConfig and AutoModelForCausalLM know these types; may be repeated."""
    import transformers

    from lowrank.models.adaptive_lm import AdaptiveDecoderConfig, AdaptiveDecoderForCausalLM
    from lowrank.models.sru_lm import SruConfig, SruForCausalLM

    for config, model in (
        (SruConfig, SruForCausalLM),
        (AdaptiveDecoderConfig, AdaptiveDecoderForCausalLM),
    ):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        transformers.AutoModelForCausalLM.register(config, model, exist_ok=True)

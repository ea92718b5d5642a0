"""Architectures of our own, in the form that transformers' Auto classes build and load.

Nothing is imported until `register()` is called: `import lowrank` needs no transformers.
"""

from __future__ import annotations

STATEFUL_TYPES = ("sru",)
"""Model types that take a `state` and return the next one: their configs say `carries_state`."""


def register() -> None:
    """Make transformers' AutoConfig and AutoModelForCausalLM know these types; may be repeated."""
    import transformers

    from lowrank.models.sru_lm import SruConfig, SruForCausalLM

    transformers.AutoConfig.register(SruConfig.model_type, SruConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(SruConfig, SruForCausalLM, exist_ok=True)

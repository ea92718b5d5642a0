"""What a model is run on: a batch for an encoder; prompt and single tokens for a decoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank.benchmark.forms import Run
from lowrank.benchmark.presets import Kind
from lowrank.errors import LowRankError


class NoCache(LowRankError):
    """A decoder that cannot decode token by token."""


Phase = Literal["forward", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Work:
    """One cell of the grid."""

    phase: Phase
    batch: int
    length: int
    """Tokens per row that are read: of the input, or of the prompt."""
    new_tokens: int = 0
    """Tokens per row that are generated; 0 unless decoding."""

    def __post_init__(self) -> None:
        if min(self.batch, self.length) < 1 or (self.new_tokens < 1) == (self.phase == "decode"):
            raise LowRankError(
                "batch >= 1, length >= 1 and, for decoding alone, new_tokens >= 1 must hold, got "
                f"{self.batch}, {self.length}, {self.new_tokens}"
            )

    @property
    def num_tokens(self) -> int:
        """That the timed call takes or makes."""
        return self.batch * (self.new_tokens if self.phase == "decode" else self.length)

    @property
    def name(self) -> str:
        shape = f"{self.phase} {self.batch} x {self.length}"
        return f"{shape} + {self.new_tokens}" if self.new_tokens else shape


def grid(kind: Kind, shapes: list[tuple[int, int]], new_tokens: int) -> list[Work]:
    """The cells of a model: one per (batch, length) for encoders, two for decoders."""
    if kind == "encoder":
        return [Work("forward", *shape) for shape in shapes]
    prefill = [Work("prefill", *shape) for shape in shapes]
    return prefill + [Work("decode", *shape, new_tokens) for shape in shapes]


def check_fits(model: Any, work: Work) -> None:
    """Raise LowRankError for more positions than the model has."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and work.length + work.new_tokens > most:
        raise LowRankError(f"length + new tokens <= {most} must hold for this model: {work.name}")


def make_inputs(model: Any, work: Work, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids, [batch, length] on the model's device; rows are full, nothing is padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (work.batch, work.length), generator=generator)
    device = next(model.parameters()).device
    if work.phase == "forward":
        mask = torch.ones_like(ids)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return {"input_ids": ids.to(device)}


def forward(run: Run, model: Any, inputs: Mapping[str, Tensor], work: Work) -> Callable[[], Any]:
    """One pass over the inputs. A prompt's pass makes a cache and the last position's logits only,
    as `generate` does."""
    if work.phase == "forward":
        return lambda: run(**inputs)
    options: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    return lambda: run(**inputs, **options)


class Greedy:
    """Greedy decoding after a prompt, one token per row and pass, without a stop token.

    The prompt is read once, here; every call rewinds the cache to its end and generates the same
    tokens again.

    Args:
        run: The form that decodes.
        model: The torch model, which reads the prompt: no form needs to be built for it.
        prompt: Token ids, [batch, length].
        new_tokens: Passes of a call.
        static_cache: Allocate the cache once, for shapes that do not change.

    Raises:
        NoCache: The model keeps none.
    """

    def __init__(
        self, run: Run, model: Any, prompt: Tensor, new_tokens: int, static_cache: bool = False
    ) -> None:
        from transformers import DynamicCache, StaticCache

        if "past_key_values" not in inspect.signature(model.forward).parameters:
            raise NoCache(f"{type(model).__name__} keeps no KV cache to decode with")
        self.run, self.new_tokens, self.length = run, new_tokens, prompt.shape[1]
        self.cache: Any = (
            StaticCache(config=model.config, max_cache_len=self.length + new_tokens)
            if static_cache
            else DynamicCache(config=model.config)
        )
        output = model(input_ids=prompt, past_key_values=self.cache, use_cache=True)
        self.first = output.logits[:, -1:].argmax(-1)
        """The token that the prompt's pass gives, [batch, 1]: not counted as generated here."""

    def __call__(self) -> Tensor:
        """Generated token ids, [batch, new_tokens]."""
        self._rewind()
        token, tokens = self.first, []
        for _ in range(self.new_tokens):
            output = self.run(input_ids=token, past_key_values=self.cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
            tokens.append(token)
        return torch.cat(tokens, dim=1)

    def _rewind(self) -> None:
        for layer in self.cache.layers:
            if isinstance(layer.get_seq_length(), Tensor):
                # what is behind the length is masked, and overwritten
                layer.cumulative_length.fill_(self.length)
            else:
                layer.crop(self.length - layer.get_seq_length())


def call_of(
    run: Run, model: Any, work: Work, inputs: Mapping[str, Tensor], static_cache: bool = False
) -> Callable[[], Any]:
    """What is timed of a form: a pass, or the decoding of all new tokens.

    To be made and called without gradients, both in inference mode or neither.
    """
    if work.phase == "decode":
        return Greedy(run, model, inputs["input_ids"], work.new_tokens, static_cache)
    return forward(run, model, inputs, work)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device

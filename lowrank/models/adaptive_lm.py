"""A decoder for large word vocabularies, as transformers knows models.

Blocks and key-value cache are those of transformers' Llama; what is around them is adaptive. Needs
transformers; see `lowrank.models.register`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lowrank.embedding import LowRankEmbedding, LowRankHead, init_factors
from lowrank.models.adaptive import IGNORED, AdaptiveEmbedding, AdaptiveSoftmax, cluster_dims


class AdaptiveDecoderConfig(LlamaConfig):
    """Size of an `AdaptiveDecoderForCausalLM`: Llama's fields, and how the vocabulary is cut."""

    model_type = "adaptive-decoder"
    takes_targets: ClassVar[bool] = True
    """The model takes `targets`, and then returns their loss without all logits."""

    cutoffs: list[int] | None = None
    """First id of every cluster but cluster 0, rising; None is one cluster. Ids must be sorted by
    frequency, most frequent first."""
    reduction: int = 4
    """Cluster i has hidden_size / reduction^i dimensions. Baevski and Auli's 4."""
    output_bias: bool = True
    """Give every token a bias in the softmax: V parameters, with which the words of a cluster that
    was pruned away still differ by frequency."""
    tie_word_embeddings: bool = True
    """Softmax and embedding share the factors of every cluster."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        edges = self.edges
        if any(not a < b for a, b in pairwise(edges)):
            raise ValueError(
                f"0 < cutoffs, rising, < vocab_size must hold, got {self.cutoffs} for "
                f"{self.vocab_size} tokens"
            )
        if self.reduction < 1:
            raise ValueError(f"reduction >= 1 must hold, got {self.reduction}")

    @property
    def edges(self) -> tuple[int, ...]:
        """First id of every cluster, and the size of the vocabulary."""
        return (0, *(self.cutoffs or ()), self.vocab_size)


class AdaptiveDecoderForCausalLM(LlamaPreTrainedModel, GenerationMixin):
    """Adaptive embedding, Llama's blocks, adaptive softmax.

    `logits` are log-probabilities, normalised already.
    """

    config_class = AdaptiveDecoderConfig
    config: AdaptiveDecoderConfig
    base_model_prefix = "model"

    def __init__(self, config: AdaptiveDecoderConfig) -> None:
        super().__init__(config)
        inner = copy.deepcopy(config)
        inner.vocab_size, inner.pad_token_id = 1, None  # its own table is replaced
        self.model = LlamaModel(inner)
        width = config.hidden_size
        dims = cluster_dims(config.edges, width, config.reduction)
        embedding = AdaptiveEmbedding(config.edges, dims, width)
        self.model.embed_tokens = embedding
        tied = embedding if config.tie_word_embeddings else None
        self.softmax = AdaptiveSoftmax(config.edges, dims, width, tied, config.output_bias)
        # what transformers must not write twice
        self._tied_weights_keys = {
            f"softmax.clusters.{i}.{name}": f"model.embed_tokens.clusters.{i}.{name}"
            for i in range(len(dims))
            for name in ("weight", "projection")
        }
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        teacher: Sequence[Tensor] | None = None,
        teacher_weight: float = 0.0,
        temperature: float = 1.0,
        **options: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predict the next token at every place.

        Args:
            input_ids: [batch, time].
            attention_mask: 0 at padding.
            position_ids: Of the tokens; counted by default.
            past_key_values: Returned for the text before.
            inputs_embeds: Instead of ids, [batch, time, hidden].
            labels: Token ids, [batch, time], shifted in here as in all models of transformers; -100
                is not predicted.
            targets: The token to predict at every place, [batch, time], -100 for none. Only the
                loss is computed then, and of the softmax only the clusters that it needs.
            use_cache: Whether to return keys and values; by default as the config says.
            logits_to_keep: Log-probabilities of the last places only; 0 for all.
            return_dict: False for a tuple.
            teacher: What `softmax.needed` gives of another model for the same targets; the loss is
                then that of `AdaptiveSoftmax.loss`.
            teacher_weight: Of it, in [0, 1].
            temperature: Of its predictions, > 0.
            options: Handed on to the blocks.
        """
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **options,
        )
        hidden = found.last_hidden_state
        logits = None if targets is not None else self.softmax(hidden[:, -logits_to_keep:])
        if labels is not None and targets is None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        loss = None
        if targets is not None:
            loss = self.softmax.loss(
                hidden.flatten(0, 1), targets.flatten(), teacher, teacher_weight, temperature
            )
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )
        return output if return_dict is not False else output.to_tuple()

    def get_output_embeddings(self) -> nn.Module:
        return self.softmax

    def resize_token_embeddings(self, *args: Any, **options: Any) -> Any:
        """Not possible: a new token has no place among ids that are sorted by frequency."""
        raise NotImplementedError(
            "the vocabulary of an adaptive decoder is sorted by frequency and cannot be resized"
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, LowRankEmbedding | LowRankHead):
            init_factors(module, std)
            if isinstance(module, LowRankHead) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, AdaptiveSoftmax):
            module.reset_parameters(std)
        else:
            super()._init_weights(module)

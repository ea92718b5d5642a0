"""A language model of simple recurrent units, as transformers knows models.

The only module of `lowrank` besides `hf` that imports transformers; see `lowrank.models.register`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from lowrank.models.sru import Sru, SruLayer


class SruConfig(PreTrainedConfig):
    """Size of an `SruForCausalLM`; the embedding is as wide as the layers."""

    model_type = "sru"
    carries_state: ClassVar[bool] = True
    """The model takes `state` and returns the next one, so it can read a text piece by piece."""

    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 4
    dropout: float = 0.1
    """Of the embedding, and of the cells on their way out of each layer."""
    layer_norm: bool = True
    """Before the matrices of each layer, and before the output."""
    highway_bias: float = 0.0
    """Initial bias of the reset gates; below 0, layers begin close to the identity."""
    tie_word_embeddings: bool = True
    """The output matrix is the embedding."""
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True
    """Return the state, and generate from it instead of reading the whole text again."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be an integer >= 1, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"0 <= dropout < 1 must hold, got {self.dropout}")


@dataclass
class SruOutput(ModelOutput):
    """What the model returns."""

    loss: Tensor | None = None
    """Mean nats per predicted token, if labels were given."""
    logits: Tensor | None = None
    """[batch, time, vocabulary]."""
    state: Tensor | None = None
    """Cells of all layers after the last token, [layers, batch, hidden]."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embedding and every layer's output, the last one normalised; [batch, time, hidden]."""


class SruForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, SRU layers, and an output matrix that may be the embedding.

    Lei et al. 2018 (arXiv 1709.02755), the character-level language model, with layer norms (an
    option) and without projections.
    """

    config_class = SruConfig
    config: SruConfig
    base_model_prefix = "sru"
    carries_state: ClassVar[bool] = True
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012
    _is_stateful = True
    _no_split_modules = ["SruLayer"]  # noqa: RUF012

    def __init__(self, config: SruConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.sru = Sru(
            config.hidden_size,
            config.num_hidden_layers,
            config.dropout,
            config.layer_norm,
            config.highway_bias,
        )
        self.norm = nn.LayerNorm(config.hidden_size) if config.layer_norm else nn.Identity()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **ignored: Any,
    ) -> SruOutput | tuple[Tensor, ...]:
        """Predict the next token at every place.

        Args:
            input_ids: [batch, time].
            attention_mask: 0 at padding, which leaves the state alone, left or right of the text;
                [batch, time] or longer, of which the last `time` columns count.
            state: Returned for the text before; None at its beginning.
            labels: Token ids, [batch, time], shifted in here as in all models of transformers;
                -100 is not predicted.
            use_cache: Whether to return the state; by default as the config says.
            output_hidden_states: Whether to return them; by default as the config says.
            return_dict: False for a tuple.
            logits_to_keep: Logits of the last places only; 0 for all.
            ignored: What `generate` hands to every model, such as positions.
        """
        padding = None
        if attention_mask is not None:
            padding = (attention_mask[:, -input_ids.shape[1] :] == 0).t()
            padding = padding if padding.any() else None
        # the layers are time first; transposing ids is cheaper than transposing vectors
        embedded = self.dropout(self.embed_tokens(input_ids.t()))
        outputs, state = self.sru(embedded, state, padding)
        hidden = self.norm(outputs[-1]).transpose(0, 1)
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        keep = self.config.use_cache if use_cache is None else use_cache
        show = output_hidden_states
        show = self.config.output_hidden_states if show is None else show
        below = [h.transpose(0, 1) for h in (embedded, *outputs[:-1])]
        output = SruOutput(
            loss=loss,
            logits=logits,
            state=state if keep else None,
            hidden_states=(*below, hidden) if show else None,
        )
        return output if return_dict is not False else output.to_tuple()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SruLayer):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding | nn.Linear):
            bound = (3 / module.weight.shape[1]) ** 0.5  # as the layers': variance 1 / d
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `generate` hands on `state` instead

    def _reorder_cache(self, state: Tensor, beam_idx: Tensor) -> Tensor:
        """The states that beams continue from."""
        return state.index_select(1, beam_idx.to(state.device))

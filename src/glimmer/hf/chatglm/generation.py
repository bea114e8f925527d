"""ChatGLM-6B with its head: losses, and ``generate``, whose positions go on as the network's do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from glimmer.errors import InvalidParameterError
from glimmer.hf.chatglm.configuration import ChatGLMConfig
from glimmer.hf.chatglm.layout import next_positions, stay_at_blank
from glimmer.hf.chatglm.modeling import ChatGLMModel, ChatGLMPreTrainedModel, positions_of


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "transformer.word_embeddings.weight"
    }

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """``labels`` [batch, tokens] are shifted here; -100 is not predicted. The rest as
        ``ChatGLMModel.forward``."""
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        input_ids = model_kwargs.get("input_ids", inputs_tensor)
        if input_ids.is_floating_point() or input_ids.shape[1] == 0:
            raise InvalidParameterError(
                "Positions are made from input_ids. With inputs_embeds, give position_ids [batch, "
                "2, tokens]."
            )
        return positions_of(self.config, input_ids, model_kwargs.get("attention_mask"))

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        # Drafts (prompt lookup, an assistant) get positions that count on in both rows.
        position_ids = kwargs.get("position_ids")
        if position_ids is not None and position_ids.dim() == 3:  # else ``forward`` says so
            kwargs["position_ids"] = stay_at_blank(position_ids)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        return inputs

    def _update_model_kwargs_for_generation(
        self,
        outputs: Any,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        position_ids = model_kwargs.pop("position_ids")
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        added = next_positions(position_ids, num_new_tokens)
        return {**model_kwargs, "position_ids": torch.cat([position_ids, added], dim=-1)}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        # The base class takes the first of three dimensions for kinds of positions.
        position_ids = kwargs.pop("position_ids")
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)
        return input_ids, {**kwargs, "position_ids": position_ids.repeat_interleave(expand_size, 0)}

    @staticmethod
    def create_masks_for_generate(*_args: Any, **_kwargs: Any) -> Any:
        """What ``generate`` would do for a cache of fixed size, with a causal mask."""
        raise InvalidParameterError(
            "ChatGLM-6B's prefix mask does not fit a static cache. Leave cache_implementation out."
        )

"""ChatGLM-6B's network: GLM (arXiv 2103.10360) with rotary positions in two dimensions.

Formulas: the official modeling_chatglm.py of zai-org/chatglm-6b. State-dict names are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm.family import RESIDUAL_SCALE
from glimmer.hf.chatglm.configuration import ChatGLMConfig
from glimmer.hf.chatglm.layout import make_mask, make_positions
from glimmer.hf.prefix import new_encoder, use_prefix

_ROPE_BASE = 10000.0
Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, each [batch, 1, tokens, head_dim]."""


def rotation(position_ids: torch.Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """Of ``position_ids`` [batch, 2, tokens]: the first row turns the first half of each head, the
    second row the second half."""
    dims = head_dim // 2
    exponents = torch.arange(0, dims, 2, device=position_ids.device).float() / dims
    # The official buffer of frequencies is float16, whatever the model runs in.
    frequencies = (1.0 / _ROPE_BASE**exponents).half().float()
    angles = position_ids[..., None].float() * frequencies  # [batch, 2, tokens, dims / 2]
    angles = torch.cat([angles, angles], dim=-1)
    angles = angles.transpose(1, 2).flatten(-2)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, turned: Rotation) -> torch.Tensor:
    """``x`` [batch, heads, tokens, head_dim]; pairs lie a quarter of a head apart."""
    cos, sin = turned
    halves = x.unflatten(-1, (2, -1))
    first, second = halves.chunk(2, dim=-1)
    across = torch.cat([-second, first], dim=-1).flatten(-2)
    return x * cos + across * sin


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.matmul(query, key.transpose(2, 3)).float() * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ChatGLMAttention(nn.Module):
    is_causal = False  # the mask tells all

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        turned: Rotation,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape
        # Each head's query, key and value rows lie together.
        heads = self.query_key_value(hidden_states).view(*shape[:-1], -1, 3 * self.head_dim)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=-1)
        query, key = rotate(query, turned), rotate(key, turned)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attention: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            # The official code divides by (layer + 1) and multiplies again, for float16's sake.
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        return self.dense(output.reshape(shape)), weights


class ChatGLMMLP(nn.Module):
    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh")
        down: torch.Tensor = self.dense_4h_to_h(wide)
        return down


class ChatGLMBlock(GradientCheckpointingLayer):
    """Residuals carry the normed input, scaled, and not the input."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layernorm_epsilon
        self.input_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        turned: Rotation,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.attention(normed, attention_mask, turned, cache=cache, **kwargs)
        normed = self.post_attention_layernorm(normed * RESIDUAL_SCALE + attended)
        mixed: torch.Tensor = normed * RESIDUAL_SCALE + self.mlp(normed)
        return mixed


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]  # noqa: RUF012
    _supports_sdpa = True
    # Official files hold the frequencies of each layer, which the official code does not read.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": ChatGLMBlock,
        "attentions": ChatGLMAttention,
    }


class ChatGLMModel(ChatGLMPreTrainedModel):
    makes_positions = True
    """Where none are given, of the ids and the padding mask."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        if config.pre_seq_len:
            self.prefix_encoder = new_encoder(self, config.pre_seq_len, config.prefix_projection)
            use_prefix(self)
        self.post_init()

    @property
    def prefix_embedding_size(self) -> int:
        """Later generations project rows as wide as all keys and values."""
        return self.config.hidden_size

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.word_embeddings = value

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """``attention_mask`` is [batch, past + tokens], 0 at padding, or [batch, 1, tokens, past +
        tokens], True where a token sees another; ``position_ids`` [batch, 2, tokens]. Without
        positions, those of a whole text are made, and the mask is made of positions and padding.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InvalidParameterError("Give either input_ids or inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past_length = cache.get_seq_length() if cache is not None else 0
        is_whole_mask = attention_mask is not None and attention_mask.dim() == 4
        if position_ids is None:
            if input_ids is None or past_length or is_whole_mask:
                raise InvalidParameterError(
                    "Positions are made from the ids of a whole text with a padding mask. With "
                    "inputs_embeds, a filled cache or a mask of pairs, give position_ids [batch, "
                    "2, tokens]."
                )
            position_ids = positions_of(self.config, input_ids, attention_mask)
        elif position_ids.dim() != 3 or position_ids.shape[1] != 2:
            raise InvalidParameterError(
                "Tokens of this network have two positions: position_ids must be [batch, 2, "
                f"tokens], but they are {list(position_ids.shape)}."
            )
        if not is_whole_mask:
            attention_mask = make_mask(position_ids, attention_mask, past_length)
        turned = rotation(position_ids, self.config.head_dim, inputs_embeds.dtype)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, turned, cache=cache, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states), cache=cache
        )


def positions_of(
    config: ChatGLMConfig, input_ids: torch.Tensor, padding_mask: torch.Tensor | None
) -> torch.Tensor:
    assert config.bos_token_id is not None
    blanks = (config.gmask_token_id, config.mask_token_id)
    return make_positions(input_ids, padding_mask, config.bos_token_id, blanks)

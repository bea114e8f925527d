"""ChatGLM-6B's config.json, under its official keys."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm.export import MODEL_TYPE


class ChatGLMConfig(PreTrainedConfig):
    """Defaults are the published model's; those of the official class are its first days'.

    Raises:
        InvalidParameterError: it is of a later generation, of integer weights, or of a network that
            no release has.
    """

    model_type = MODEL_TYPE
    attribute_map = {  # noqa: RUF012  (as the base class has it)
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "num_key_value_heads": "num_attention_heads",
    }
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    max_sequence_length: int = 2048
    layernorm_epsilon: float = 1e-5
    position_encoding_2d: bool = True
    bos_token_id: int | None = 130004
    """<sop>, the start token: the context ends before it."""
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    pre_seq_len: int | None = None
    """Tokens of a trained prefix."""
    prefix_projection: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if "padded_vocab_size" in kwargs:
            raise InvalidParameterError(
                "This config is of ChatGLM2, ChatGLM3 or GLM-4, which only share the model_type "
                "with ChatGLM-6B. glimmer.hf.load loads them, as transformers' GlmForCausalLM."
            )
        if kwargs.get("quantization_bit"):
            raise InvalidParameterError(
                f"This model's weights are stored with {kwargs['quantization_bit']} bits, as "
                "ChatGLM's own quantize does. glimmer.hf.load reads them."
            )
        if not self.position_encoding_2d:
            raise InvalidParameterError(
                "position_encoding_2d is false, so positions have one dimension, which no release "
                "has and this class does not run."
            )
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

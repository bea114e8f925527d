"""GLM-4.5's tokenizer: GLM-4's, with ordinary tokens for thoughts and tool calls."""

from __future__ import annotations

from glimmer.checkpoints import Checkpoint
from glimmer.families.glm4 import tokenizer as glm4
from glimmer.tokenizers import Tokenizer

NO_THINK = "/nothink"
THINK, THINK_END = "<think>", "</think>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, TOOL_RESPONSE_END = "<tool_response>", "</tool_response>"
ARG_KEY, ARG_KEY_END = "<arg_key>", "</arg_key>"
ARG_VALUE, ARG_VALUE_END = "<arg_value>", "</arg_value>"
STRUCTURE = (
    THINK, THINK_END, TOOL_CALL, TOOL_CALL_END, TOOL_RESPONSE, TOOL_RESPONSE_END,
    ARG_KEY, ARG_KEY_END, ARG_VALUE, ARG_VALUE_END, NO_THINK,
)  # fmt: skip

has_tokenizer = glm4.has_tokenizer
stop_token_ids = glm4.stop_token_ids


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return glm4.load(checkpoint, (*glm4.NEEDED, *STRUCTURE))

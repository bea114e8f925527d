"""ChatGLM3's tokenizer: ChatGLM2's, with a token for each role."""

from __future__ import annotations

from glimmer.checkpoints import Checkpoint
from glimmer.families.chatglm2 import tokenizer as chatglm2
from glimmer.tokenizers import Tokenizer

GMASK, START = chatglm2.GMASK, chatglm2.START
SYSTEM, USER = "<|system|>", "<|user|>"
ASSISTANT, OBSERVATION = "<|assistant|>", "<|observation|>"
ROLES = (SYSTEM, USER, ASSISTANT, OBSERVATION)
SPECIAL_TOKENS = (*chatglm2.SPECIAL_TOKENS, *ROLES)

has_tokenizer = chatglm2.has_tokenizer
text_frame = chatglm2.text_frame


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    # The official code recognises only roles in text, and prints all its special tokens.
    return chatglm2.load(checkpoint, SPECIAL_TOKENS, recognised=ROLES, printed=SPECIAL_TOKENS)


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    tokens = tokenizer.special_tokens
    return (chatglm2.end_of_text(tokenizer), tokens[USER], tokens[OBSERVATION])

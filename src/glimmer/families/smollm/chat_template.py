"""ChatML: ``<|im_start|>role\\ncontent<|im_end|>\\n`` per message, a system one first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glimmer.chat import Message, ToolSpec, to_messages
from glimmer.errors import InvalidParameterError
from glimmer.families.smollm.tokenizer import MESSAGE_END, MESSAGE_START
from glimmer.tokenizers import Tokenizer

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class ChatMLTemplate:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = tokenizer.special_tokens[MESSAGE_START]
        self._end = tokenizer.special_tokens[MESSAGE_END]
        self._newline = tokenizer.encode("\n")

    def encode(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
        add_generation_prompt: bool = True,
        *,
        thinking: bool | None = None,
        allow_special: bool = False,
    ) -> list[int]:
        turns = to_messages(messages)
        if tools or any(turn.tools for turn in turns):
            raise InvalidParameterError(
                "SmolLM2 was not trained to call tools; leave tools out or use a GLM release."
            )
        if turns[0].role != "system":
            turns.insert(0, Message("system", DEFAULT_SYSTEM))
        ids: list[int] = []
        for turn in turns:
            text = f"{turn.role}\n{turn.content}"
            ids += [self._start, *self._tokenizer.encode(text, allow_special), self._end]
            ids += self._newline
        if add_generation_prompt:
            ids += [self._start, *self._tokenizer.encode("assistant\n")]
        return ids

    def notes(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
    ) -> tuple[str, ...]:
        return ()

"""GLM-4.5's prompt: thoughts, tool calls and results in tags that are tokens.

From the published chat template. An earlier answer's thought is shown only after the user's last
turn, so that a model goes on with what it thought before it called a tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from glimmer.chat import Message, PromptBuilder, ToolSpec, to_messages, to_tools
from glimmer.families.glm4.tokenizer import ASSISTANT, GMASK, OBSERVATION, START, SYSTEM, USER
from glimmer.families.glm45.tokenizer import NO_THINK, THINK, THINK_END
from glimmer.tokenizers import Tokenizer

_TOOLS_BEGIN = """
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_TOOLS_END = """</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>"""


class GLM45Template:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

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
        offered = [*to_tools(tools), *(tool for turn in turns for tool in turn.tools)]
        prompt = PromptBuilder(self._tokenizer, allow_special)
        prompt.token(GMASK)
        prompt.token(START)
        if offered:
            prompt.token(SYSTEM)
            prompt.template(_TOOLS_BEGIN)
            for tool in offered:
                prompt.content(json.dumps(tool.given, ensure_ascii=False) + "\n")
            prompt.template(_TOOLS_END)
        last_user = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=-1)
        for i, turn in enumerate(turns):
            if turn.role == "user":
                _add_user(prompt, turn, thinking)
            elif turn.role == "assistant":
                prompt.token(ASSISTANT)
                add_answer(prompt, turn, with_thought=i > last_user)
            elif turn.role == "tool":
                if i == 0 or turns[i - 1].role != "tool":
                    prompt.token(OBSERVATION)
                prompt.template("\n<tool_response>\n")
                prompt.content(turn.content)
                prompt.template("\n</tool_response>")
            elif turn.content or not turn.tools:
                prompt.token(SYSTEM)
                prompt.content(f"\n{turn.content}")
        if add_generation_prompt:
            prompt.token(ASSISTANT)
            if thinking is False:
                prompt.template(f"\n{THINK}{THINK_END}")
        return prompt.ids()

    def notes(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | ToolSpec] | None = None,
    ) -> tuple[str, ...]:
        return ()


def _add_user(prompt: PromptBuilder, turn: Message, thinking: bool | None) -> None:
    prompt.token(USER)
    # The one tag that is the user's own: it asks for an answer without a thought.
    text = turn.content.removesuffix(NO_THINK)
    prompt.content(f"\n{text}")
    if text != turn.content or thinking is False:
        prompt.template(NO_THINK)


def add_answer(prompt: PromptBuilder, turn: Message, with_thought: bool) -> None:
    """What an assistant's turn holds behind its role."""
    thought, content = turn.reasoning or "", turn.content
    if turn.reasoning is None and THINK_END in content:
        thought = content.split(THINK_END)[0].rstrip("\n").split(THINK)[-1].lstrip("\n")
        content = content.split(THINK_END)[-1].lstrip("\n")
    prompt.template(f"\n{THINK}")
    if with_thought:
        prompt.content(thought.strip())
    prompt.template(THINK_END)
    if content.strip():
        prompt.content(f"\n{content.strip()}")
    for call in turn.tool_calls:
        prompt.template("\n<tool_call>")
        prompt.content(f"{call.name}\n")
        for key, value in call.parsed().items():
            prompt.template("<arg_key>")
            prompt.content(key)
            prompt.template("</arg_key>\n<arg_value>")
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            prompt.content(text)
            prompt.template("</arg_value>\n")
        prompt.template("</tool_call>")

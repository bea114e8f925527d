"""Messages, and the contracts of chat templates and answer parsers. Knows no family."""

from glimmer.chat.answers import AnswerForm
from glimmer.chat.message import Message, Role, ToolCall, ToolSpec, to_messages, to_tools
from glimmer.chat.parser import (
    AnswerParser,
    CallNumbers,
    Event,
    ParsedAnswer,
    PlainParser,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
    visible,
)
from glimmer.chat.prompt import PromptBuilder
from glimmer.chat.template import ChatTemplate

__all__ = [
    "AnswerForm",
    "AnswerParser",
    "CallNumbers",
    "ChatTemplate",
    "Event",
    "Message",
    "ParsedAnswer",
    "PlainParser",
    "PromptBuilder",
    "ReasoningDelta",
    "Role",
    "TextDelta",
    "ToolArgumentsDelta",
    "ToolCall",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolSpec",
    "to_messages",
    "to_tools",
    "visible",
]

"""Messages, deltas and usage in the shape that OpenAI gave them and BigModel kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from glimmer.chat import ToolArgumentsDelta, ToolCallStart
from glimmer.outputs import RequestOutput, Usage
from glimmer.tokenizers import Tokenizer

# The loop guard's end is told as the others' "not complete"; `stop_reason` says what it was.
_FINISH_REASONS = {"repetition": "length", "aborted": "stop", "error": "stop"}


def finish_reason(output: RequestOutput) -> str | None:
    reason = output.finish_reason
    return None if reason is None else _FINISH_REASONS.get(reason, reason)


def message(output: RequestOutput) -> dict[str, Any]:
    """The whole answer."""
    told: dict[str, Any] = {"role": "assistant", "content": output.text}
    if output.reasoning is not None:
        told["reasoning_content"] = output.reasoning
    if output.tool_calls:
        told["content"] = output.text or None
        told["tool_calls"] = [
            {
                "index": i,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(output.tool_calls)
        ]
    return told


def deltas(output: RequestOutput) -> Iterator[dict[str, Any]]:
    """What one streamed output adds, in order."""
    if output.reasoning_delta:
        yield {"reasoning_content": output.reasoning_delta}
    if output.delta:
        yield {"content": output.delta}
    for item in output.tool_call_deltas:
        match item:
            case ToolCallStart(index, call_id, name):
                function: dict[str, Any] = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                yield {"tool_calls": [call]}
            case ToolArgumentsDelta(index, json):
                if json:
                    yield {"tool_calls": [{"index": index, "function": {"arguments": json}}]}


def usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def logprobs(output: RequestOutput, tokenizer: Tokenizer, start: int = 0) -> list[dict[str, Any]]:
    """Of the tokens from ``start`` on; control tokens are no part of what was written."""

    def told(token_id: int, logprob: float) -> dict[str, Any]:
        data = _bytes(tokenizer, token_id)
        text = data.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(data)}

    assert output.logprobs is not None
    entries = []
    for token_id, entry in zip(output.token_ids[start:], output.logprobs[start:], strict=True):
        if _bytes(tokenizer, token_id):
            top = [told(other, logprob) for other, logprob in entry.top]
            entries.append({**told(token_id, entry.logprob), "top_logprobs": top})
    return entries


def _bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    # A network may have rows for more tokens than its tokenizer knows.
    return tokenizer.token_bytes(token_id) if token_id < tokenizer.vocab_size else b""

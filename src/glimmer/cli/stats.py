"""Speed and memory of an answer, for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from glimmer.cli.quantities import show_bytes

if TYPE_CHECKING:
    from glimmer import RequestOutput


def describe(output: RequestOutput) -> str:
    """One line: prompt, first token, generation, total, memory."""
    usage, timing = output.usage, output.timing
    parts = [
        f"prompt {usage.prompt_tokens} tokens, {timing.prefill_tokens_per_s:.1f} tokens/s",
        f"first token after {timing.time_to_first_token_s:.2f} s",
        f"answer {usage.completion_tokens} tokens"
        + (f", {speed:.1f} tokens/s" if (speed := timing.decode_tokens_per_s) else ""),
        f"total {timing.total_s:.2f} s",
    ]
    if (peak := peak_memory_bytes()) is not None:
        parts.append(f"peak memory {show_bytes(peak)}")
    return " | ".join(parts)


def peak_memory_bytes() -> int | None:
    """Most memory that this process has held, mapped weights included; None if not told."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

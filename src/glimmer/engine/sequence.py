"""One request while it runs: its tokens and its blocks."""

from __future__ import annotations

from typing import Literal

from glimmer.architecture import TextLayout
from glimmer.engine.request import Request

FinishReason = Literal["stop", "length", "aborted", "error"]


class Sequence:
    """``token_ids`` is prompt and answer; the KV cache holds the first ``num_computed``."""

    def __init__(self, request: Request, max_length: int, layout: TextLayout | None = None) -> None:
        self.request = request
        self.layout = layout
        """Where its tokens stand; None where each simply follows the one before."""
        self.token_ids = list(request.prompt_token_ids)
        self.max_length = max_length
        """Tokens at which the sequence ends, prompt included."""
        self.num_computed = 0
        self.block_table: list[int] = []

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def in_prompt(self) -> bool:
        """Whether part of the prompt is still to be computed; afterwards the sequence decodes."""
        return self.num_computed < len(self.request.prompt_token_ids)

    def append(self, token_id: int) -> FinishReason | None:
        """Take a chosen token; the reason if the answer ends with it."""
        self.token_ids.append(token_id)
        if token_id in self.request.stop_token_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.max_length else None

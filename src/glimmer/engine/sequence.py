"""One request while it runs: its tokens and its blocks."""

from __future__ import annotations

from typing import Literal

from glimmer.architecture import TextLayout
from glimmer.engine import prefix_cache
from glimmer.engine.constraint import TokenConstraint
from glimmer.engine.loop_guard import LoopGuard
from glimmer.engine.request import Request
from glimmer.engine.speculation import Drafter

FinishReason = Literal["stop", "length", "repetition", "aborted", "error"]


class Sequence:
    """``token_ids`` is prompt and answer; the KV cache holds the first ``num_computed``."""

    def __init__(
        self,
        request: Request,
        max_length: int,
        layout: TextLayout | None = None,
        constraint: TokenConstraint | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.request = request
        self.layout = layout
        """Where its tokens stand; None where each simply follows the one before."""
        self.token_ids = list(request.prompt_token_ids)
        self.max_length = max_length
        """Tokens at which the sequence ends, prompt included."""
        self.constraint = constraint
        self.drafter = drafter
        limits = request.loop_limits
        self.loop_guard = LoopGuard(limits) if limits is not None else None
        self.rank = 0
        """Its place among all sequences: lower is served sooner."""
        self.num_computed = 0
        self.block_table: list[int] = []
        self.drafts: list[int] = []
        """Tokens that may follow; this step computes them as if they did."""
        self.chain: list[bytes] = []
        """Hashes of its first full blocks."""
        self.root = prefix_cache.root(
            self.token_ids,
            layout,
            request.adapter.digest if request.adapter is not None else b"",
        )
        self.num_cached = 0
        """Tokens of the prompt that were in the cache when it first ran."""
        self.started = False

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def decodes(self) -> bool:
        """Whether nothing but the token chosen last is to be computed."""
        return self.num_computed >= self.prompt_length and self.num_uncomputed == 1

    @property
    def whole(self) -> int:
        """Tokens that must be computed in one step, since they see each other."""
        context = self.layout.context_length if self.layout is not None else 0
        return max(0, context - self.num_computed)

    def append(self, token_id: int) -> FinishReason | None:
        """Take a chosen token; the reason if the answer ends with it.

        Raises:
            GenerationError: the constraint does not allow it.
        """
        self.token_ids.append(token_id)
        if token_id in self.request.stop_token_ids:
            return "stop"
        if self.constraint is not None:
            self.constraint.accept(token_id)
            if self.constraint.is_finished:
                return "stop"
        if len(self.token_ids) >= self.max_length:
            return "length"
        if self.loop_guard is not None and self.loop_guard.repeats(token_id):
            return "repetition"
        return None

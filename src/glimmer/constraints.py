"""From the form that an answer must have to the tokens that may come next, by ``llguidance``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import llguidance
import numpy as np
import numpy.typing as npt

from glimmer.chat.grammar import with_json_layout, with_plain_layout
from glimmer.engine import Constraint, TokenConstraint
from glimmer.errors import GenerationError, InvalidParameterError
from glimmer.tokenizers import Tokenizer

# No token joins the first with another; the second is for tokenizers that drop the first.
_ANCHORS = ("\x02", "\n")


_MAX_COMPILED = 256
"""Constraints that are kept read: many requests have the same one."""


class ConstraintCompiler:
    """Makes constraints for one model. What it needs of the vocabulary is made once, when first
    asked for."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_ids: Sequence[int],
        vocab_size: int,
        *,
        plain_layout: bool = False,
    ) -> None:
        """``vocab_size`` is the network's: an id that the tokenizer lacks is never allowed. With
        ``plain_layout`` a form is followed as ``to_lark`` says it."""
        self._tokenizer = tokenizer
        self._stop_ids = list(stop_ids)
        self._vocab_size = vocab_size
        self._plain_layout = plain_layout
        self._compiled: dict[Constraint, _Grammar] = {}

    def compile(self, constraint: Constraint) -> _Grammar:
        """Read a constraint.

        Raises:
            InvalidParameterError: it cannot be read; the message says where.
        """
        text = _to_grammar(constraint, self._plain_layout)
        # Several threads read constraints, and one of them may just clear what is kept.
        if (kept := self._compiled.get(constraint)) is not None:
            return kept
        if problem := llguidance.LLMatcher.validate_grammar(text, self._vocabulary):
            what = constraint.kind.replace("_", " ")
            raise InvalidParameterError(f"The {what} cannot be followed: {problem.strip()}")
        if len(self._compiled) >= _MAX_COMPILED:
            self._compiled.clear()
        grammar = self._compiled[constraint] = _Grammar(self._vocabulary, text, self._vocab_size)
        return grammar

    def after(self, end: str, grammar: _Grammar) -> _AfterThought:
        """The same, from the end of a thought on."""
        return _AfterThought(grammar, self._tokenizer, end.encode(), self._stop_ids)

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size)),
            eos_token=self._stop_ids,
        )


class _Vocabulary:
    """A tokenizer in the form that the library asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = 0  # those of the answer are given apart
        controls = {i: token for token, i in tokenizer.special_tokens.items() if i < vocab_size}
        known = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [
            controls[i].encode() if i in controls else tokenizer.token_bytes(i)
            for i in range(known)
        ] + [b""] * (vocab_size - known)
        self.special_token_ids = sorted(controls)
        self._anchor = next((a for a in _ANCHORS if any(map(self._says, tokenizer.encode(a)))), "")

    def _says(self, token_id: int) -> bool:
        return self._tokenizer.token_bytes(token_id).strip(b" ") != b""

    def __call__(self, text: str) -> list[int]:
        """The ids of text in the middle of an answer: without the space that SentencePiece puts
        before the first word."""
        anchor = self._tokenizer.encode(self._anchor)
        ids = self._tokenizer.encode(self._anchor + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else []


def to_lark(constraint: Constraint) -> str:
    """The form as a grammar in Lark, for an engine elsewhere that follows it by this library, which
    may be an older one there."""
    if constraint.kind == "grammar":
        return with_plain_layout(constraint.value)
    if constraint.kind == "choice":
        return "start: " + " | ".join(map(json.dumps, json.loads(constraint.value)))
    if constraint.kind == "regex":
        return f"start: /{llguidance.regex_to_lark(constraint.value, use_ascii='')}/"
    schema = with_json_layout(json.loads(constraint.value))
    return with_plain_layout(f"start: %json {json.dumps(schema)}")


def _to_grammar(constraint: Constraint, plain_layout: bool) -> str:
    matcher = llguidance.LLMatcher
    if plain_layout:
        return matcher.grammar_from_lark(to_lark(constraint))
    if constraint.kind == "json_schema":
        return matcher.grammar_from_json_schema(
            json.dumps(with_json_layout(json.loads(constraint.value)))
        )
    if constraint.kind == "regex":
        return matcher.grammar_from_regex(constraint.value)
    if constraint.kind == "choice":
        options = " | ".join(json.dumps(option) for option in json.loads(constraint.value))
        return matcher.grammar_from_lark(f"start: {options}")
    return matcher.grammar_from_lark(constraint.value)


class _Grammar:
    """Makes followers of one grammar."""

    def __init__(self, vocabulary: llguidance.LLTokenizer, text: str, vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self._text = text
        self._vocab_size = vocab_size

    def __call__(self) -> TokenConstraint:
        return GrammarConstraint(
            llguidance.LLMatcher(self._vocabulary, self._text, log_level=0), self._vocab_size
        )


class GrammarConstraint:
    """Follows a grammar along one answer; see ``TokenConstraint``."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask_bytes = -(-vocab_size // 32) * 4

    @property
    def is_finished(self) -> bool:
        return self._matcher.is_stopped()

    @property
    def has_begun(self) -> bool:
        return True

    def forced(self) -> list[int]:
        return list(self._matcher.compute_ff_tokens())

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        return self._matcher.validate_tokens(list(token_ids))

    def fill(self, drafts: Sequence[int], masks: npt.NDArray[np.int32]) -> None:
        for row, mask in enumerate(masks):
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, self._mask_bytes)
            if row < len(drafts):
                self._consume(drafts[row])
        if drafts:
            self._matcher.rollback(len(drafts))
        self._check()

    def accept(self, token_id: int) -> None:
        self._consume(token_id)

    def _consume(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n<")[0].strip()  # then its own state
            raise GenerationError(f"The form of the answer cannot be followed further: {reason}")


class _AfterThought:
    """Makes constraints that begin when a thought has ended."""

    def __init__(
        self, grammar: _Grammar, tokenizer: Tokenizer, end: bytes, stop_ids: Sequence[int]
    ) -> None:
        self._grammar = grammar
        self._tokenizer = tokenizer
        self._end = end
        self._stop_ids = stop_ids

    def __call__(self) -> TokenConstraint:
        return ThoughtThenForm(self._grammar(), self._tokenizer, self._end, self._stop_ids)


class ThoughtThenForm:
    """Any text up to the end of a thought, and no end of the answer before that; then a form."""

    def __init__(
        self, form: TokenConstraint, tokenizer: Tokenizer, end: bytes, stop_ids: Sequence[int]
    ) -> None:
        self._form = form
        self._tokenizer = tokenizer
        self._end = end
        self._stop_ids = stop_ids
        self._tail = b""
        self._thinking = True

    @property
    def is_finished(self) -> bool:
        return not self._thinking and self._form.is_finished

    @property
    def has_begun(self) -> bool:
        return not self._thinking

    def forced(self) -> list[int]:
        return [] if self._thinking else self._form.forced()

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        # Whether the thought ends within drafts is not looked into: it has none.
        return 0 if self._thinking else self._form.count_allowed(token_ids)

    def fill(self, drafts: Sequence[int], masks: npt.NDArray[np.int32]) -> None:
        if not self._thinking:
            self._form.fill(drafts, masks)
            return
        masks[:] = -1
        for token_id in self._stop_ids:
            masks.view(np.uint32)[:, token_id // 32] &= ~np.uint32(1 << token_id % 32)

    def accept(self, token_id: int) -> None:
        if not self._thinking:
            self._form.accept(token_id)
            return
        known = token_id < self._tokenizer.vocab_size
        tail = self._tail + (self._tokenizer.token_bytes(token_id) if known else b"")
        _, found, _ = tail.partition(self._end)
        self._thinking = not found
        self._tail = tail[-len(self._end) :]

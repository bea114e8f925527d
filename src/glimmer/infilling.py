"""A text with blanks, filled one after another: each becomes a request with a layout of its own.

Two ways to lay out what is filled already, both of which show the network the text with the blanks
that are left, and all that was filled before:

* "parts", as GLM is trained (arXiv 2103.10360, section 2.2) and its own ``generate_samples.py``
  fills: the text keeps all its mask tokens, and what fills them follows, span after span, each at
  the position of its mask. The text is read once; what came before is in the prefix cache.
* "substitute", as GLM-130B's ``generate.py`` fills: what fills a blank takes the place of its mask
  in the text, which is read again for the next one. There is one blank being filled and one <sop>
  in every prompt, which is all that the official code of ChatGLM-6B can lay out.

Behind a text that ends in no blank, released networks read the token that ends a text, as both
programs have it (``TextModel.blank_text_end``).

The releases of ChatGLM-6B do not tell with how many blanks they were trained, so "auto" takes
"substitute" for them, and "parts" for networks whose config says that they learnt it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from glimmer.architecture import span_layout
from glimmer.engine import SamplingParams
from glimmer.errors import InvalidParameterError
from glimmer.outputs import FinishReason, RequestOutput, Usage
from glimmer.session import Prepared, RequestOptions, Session
from glimmer.text_model import TextModel
from glimmer.tokenizers import Tokenizer

InfillMethod = Literal["auto", "parts", "substitute"]


class InfillOptions(RequestOptions, total=False):
    method: InfillMethod
    """How the text and what was filled of it are laid out. Default: "auto"."""


@dataclass(frozen=True, slots=True)
class BlankText:
    """A text with blanks, as it was written and in tokens."""

    parts: tuple[str, ...]
    """The text around the blanks: one more than there are of those."""
    blanks: tuple[str, ...]
    """The tokens that stand for the blanks, as written."""
    token_ids: tuple[int, ...]
    places: tuple[int, ...]
    """Of the blanks, in ``token_ids``."""

    def completed(self, fills: Sequence[RequestOutput], tokenizer: Tokenizer) -> str:
        """The text with the blanks that were filled, up to the first that was not.

        A space before a blank belongs to what fills it (see the tokenizer's ``encode_blanks``), so
        it is there if the first token begins with one.
        """
        text = ""
        for part, fill in zip(self.parts, fills, strict=False):
            text += _before_blank(part)
            if text and fill.text and _begins_with_space(fill.token_ids, tokenizer):
                text += " "
            text += fill.text
        if len(fills) == len(self.blanks) and all(f.finish_reason is not None for f in fills):
            text += self.parts[-1]
        return text


@dataclass(frozen=True, slots=True)
class InfillOutput:
    """A text whose blanks are filled, or as far as that has come when streamed."""

    text: str
    """The text with its blanks filled; when streamed, up to where it is known."""
    delta: str
    """What this output adds to the text of the one before; all of it when not streamed."""
    blanks: tuple[str, ...]
    """All blanks of the text, in order: "[MASK]" and its like."""
    fills: tuple[RequestOutput, ...]
    """What fills each of them, as far as they have come; ``index`` counts the blanks."""
    token_ids: tuple[int, ...]
    """The text in tokens, with those of the fills in place of the blanks so far."""
    finish_reason: FinishReason | None
    """None until all blanks are filled. Then "stop", or what ended the first that ended
    otherwise."""

    @property
    def usage(self) -> Usage:
        """Of all requests together: each blank is one, and reads the text again as far as it is
        not in the cache."""
        used = [fill.usage for fill in self.fills]
        return Usage(
            sum(u.prompt_tokens for u in used),
            sum(u.completion_tokens for u in used),
            sum(u.cached_tokens for u in used),
        )


def read_blanks(text: str, model: TextModel) -> BlankText:
    """Find the blanks of a text.

    Raises:
        InvalidParameterError: there is none, or the network fills none.
        TokenizerError: there is no tokenizer.
    """
    tokens = model.blank_tokens
    pattern = re.compile(rf"({'|'.join(map(re.escape, tokens))})")
    pieces = pattern.split(text)
    if len(pieces) == 1:
        raise InvalidParameterError(
            f"The text has no blank to fill. Write {tokens[0]} where a few words are missing, "
            f"{' or '.join(tokens[1:])} for more."
        )
    ids = model.encode_blanks(text)
    known = {model.tokenizer.special_tokens[token] for token in set(pieces[1::2])}
    places = tuple(i for i, token_id in enumerate(ids) if token_id in known)
    assert len(places) == len(pieces) // 2, "nothing else in a text becomes a control token"
    return BlankText(tuple(pieces[::2]), tuple(pieces[1::2]), tuple(ids), places)


class Infilling:
    """The way of one text from blank to blank: ``prepare`` the next request, ``take`` its outputs
    until the last, and so on until it ``is_finished``.

    Raises:
        InvalidParameterError: no blank; a network that fills none; a method or params that are not
            allowed.
        AdapterNotFoundError: no adapter of this name is loaded.
    """

    def __init__(
        self,
        session: Session,
        text: str,
        params: SamplingParams | None = None,
        *,
        method: InfillMethod = "auto",
        priority: int = 0,
        adapter: str | None = None,
    ) -> None:
        if method not in get_args(InfillMethod):
            raise InvalidParameterError(
                f"method must be one of {', '.join(get_args(InfillMethod))}, but it is {method!r}."
            )
        self._params = params or session.default_params
        if self._params.n > 1 or self._params.best_of is not None:
            raise InvalidParameterError(
                "A text is completed once: leave out n and best_of, and ask again with another "
                "seed for another one."
            )
        session.refuse_hopeless([text])
        self.text = read_blanks(text, session.model)
        self._session = session
        self._priority = priority
        self._adapter = session.adapters.find(adapter)
        self._tokenizer = session.model.tokenizer
        blanks = session.model.architecture.blanks
        assert blanks is not None, "read_blanks refuses such a network"
        self._start_id = blanks.start_id
        is_open = self.text.places[-1] == len(self.text.token_ids) - 1
        self._text_end = () if is_open else session.model.blank_text_end
        """What stands behind the text in a prompt; no part of it."""
        self._end_ids = {*session.model.stop_token_ids, *self._params.stop_token_ids}
        if method == "auto":
            method = "parts" if blanks.several else "substitute"
        self.method: InfillMethod = method
        self._fills: list[RequestOutput] = []
        self._kept: list[list[int]] = []
        """Of each fill, the tokens that those after it are shown."""
        self._shown = 0

    @property
    def is_finished(self) -> bool:
        return len(self._fills) == len(self.text.blanks) and self._is_between

    def prepare(self) -> Prepared:
        """The request for the next blank. Raises InvalidParameterError."""
        assert self._is_between, "the blank before is still being filled"
        assert not self.is_finished
        number = len(self._fills)
        place = self.text.places[number]
        if self.method == "substitute":
            context = self._substituted()
            place += len(context) - len(self.text.token_ids)
            spans = [(place, 1)]
            answer = [self._start_id]
        else:
            context = list(self.text.token_ids)
            before = zip(self.text.places, self._kept, strict=False)
            spans = [*((blank, len(ids) + 1) for blank, ids in before), (place, 1)]
            answer = [t for ids in self._kept for t in (self._start_id, *ids)] + [self._start_id]
        context += self._text_end
        layout = span_layout(len(context), spans)
        return self._session.prepare_layout(
            number, [*context, *answer], layout, self._params, self._priority, self._adapter
        )

    def take(self, output: RequestOutput) -> InfillOutput:
        """What the text is by now, with this output of the request that was prepared last."""
        if not self._is_between:
            self._fills.pop()
            self._kept.pop()
        self._fills.append(output)
        self._kept.append(self._kept_ids(output))
        text = self.text.completed(self._fills, self._tokenizer)
        delta, self._shown = text[self._shown :], len(text)
        reason: FinishReason | None = None
        if self.is_finished:
            reasons = [fill.finish_reason for fill in self._fills]
            reason = next((r for r in reasons if r != "stop"), "stop")
        return InfillOutput(
            text=text,
            delta=delta,
            blanks=self.text.blanks,
            fills=tuple(self._fills),
            token_ids=tuple(self._substituted()),
            finish_reason=reason,
        )

    @property
    def _is_between(self) -> bool:
        """Whether no blank is being filled."""
        return not self._fills or self._fills[-1].finish_reason is not None

    def _substituted(self) -> list[int]:
        """The text's tokens with what fills the first blanks in their place."""
        ids: list[int] = []
        last = 0
        for place, kept in zip(self.text.places, self._kept, strict=False):
            ids += [*self.text.token_ids[last:place], *kept]
            last = place + 1
        return ids + list(self.text.token_ids[last:])

    def _kept_ids(self, fill: RequestOutput) -> list[int]:
        """A fill's tokens without what ended it."""
        ids = list(fill.token_ids)
        if fill.stop_text is not None:
            return self._cut_ids(ids, fill.text)
        return ids[:-1] if ids and ids[-1] in self._end_ids else ids

    def _cut_ids(self, ids: list[int], text: str) -> list[int]:
        """Of a fill that a stop string has cut to ``text``, perhaps amid a token: what is left of
        that one is encoded as text that goes on."""

        def written(count: int) -> str:
            return self._tokenizer.decode(i for i in ids[:count] if i < self._tokenizer.vocab_size)

        if not text:
            return []
        count = next(n for n in range(len(ids), -1, -1) if text.startswith(written(n)))
        rest = text[len(written(count)) :]
        if not rest:
            return ids[:count]
        if not count and _begins_with_space(ids, self._tokenizer):
            return self._tokenizer.encode(rest)
        return ids[:count] + self._session.model.encode_blanks(self.text.blanks[0] + rest)[1:]


def _before_blank(part: str) -> str:
    """Without the one space that belongs to what fills the blank."""
    return part[:-1] if part.endswith(" ") and not part.endswith("  ") else part


def _begins_with_space(token_ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the first of them that is written at all does."""
    # A network may have rows for more tokens than its tokenizer knows.
    known = (i for i in token_ids if i < tokenizer.vocab_size)
    return next(filter(None, map(tokenizer.token_bytes, known)), b"").startswith(b" ")

"""A model as far as text is concerned: what stands between a conversation and token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from glimmer.architecture import Architecture
from glimmer.chat import AnswerParser, ChatTemplate, ToolSpec
from glimmer.errors import InvalidParameterError, TokenizerError
from glimmer.families import BlankTexts, Chat, Family, Release
from glimmer.tokenizers import Tokenizer


class TextModel:
    """Tokenizer, chat template, what ends an answer; no weights. Whoever runs the network, here or
    elsewhere, gets token ids that are made by this and gives others that are read by it.
    """

    def __init__(
        self,
        path: Path,
        own_name: str,
        family: Family,
        architecture: Architecture,
        tokenizer: Tokenizer | None,
        chat: Chat | None,
        release: Release | None,
    ) -> None:
        self.path = path
        self.architecture = architecture
        self.release = release
        self._own_name = own_name
        self._family = family
        self._tokenizer = tokenizer
        self._chat = chat

    @property
    def name(self) -> str:
        """What to call the model: the release's title, else the file's own name, else its path."""
        if self.release is not None:
            return f"{self.release.title} ({self.release.name})"
        return self._own_name

    @property
    def family(self) -> str:
        return self._family.name

    @property
    def own_family(self) -> Family:
        return self._family

    @property
    def notice(self) -> str | None:
        """One line that a user must know before the first answer."""
        return self.release.notice if self.release else None

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The values of SamplingParams that the release, or else its family, asks for."""
        return (self.release.sampling if self.release else None) or self._family.sampling

    @property
    def has_tokenizer(self) -> bool:
        """Without one, the model runs for token ids alone."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError if there is none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self.path} holds no tokenizer, so it runs for token ids alone: give lists of "
                "ids, or a file that was converted with its tokenizer."
            )
        return self._tokenizer

    @property
    def chat(self) -> Chat:
        """Raises TokenizerError if there is no tokenizer."""
        assert self.tokenizer
        assert self._chat is not None, "it comes with the tokenizer"
        return self._chat

    @property
    def chat_template(self) -> ChatTemplate:
        """Raises TokenizerError if there is no tokenizer."""
        return self.chat.template

    def answer_parser(self, tools: Sequence[ToolSpec]) -> AnswerParser:
        """A fresh parser for one answer, given the tools that were offered.

        Raises TokenizerError if there is no tokenizer.
        """
        return self.chat.parser(tools)

    def tool_grammar(self, tools: Sequence[ToolSpec]) -> str | None:
        """The grammar of an answer that calls one of these tools; None where the family has none.

        Raises TokenizerError if there is no tokenizer.
        """
        grammar = self.chat.tool_grammar
        return None if grammar is None else grammar(tools)

    def thought_end(self, thinking: bool | None) -> str | None:
        """The text at which the thought before an answer ends; None if the model does not think."""
        return None if self._chat is None else self._chat.thought_end(thinking)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return tuple(self._family.stop_token_ids(self.tokenizer))

    @property
    def blank_tokens(self) -> tuple[str, ...]:
        """What stands for a blank in a text that ``encode_blanks`` reads.

        Raises InvalidParameterError where the network fills no blanks.
        """
        return self._blank_texts.tokens

    def encode_blanks(self, text: str) -> list[int]:
        """Ids of a text in which ``blank_tokens`` are blanks, and no other control token is one.

        Raises:
            InvalidParameterError: the network fills no blanks.
            TokenizerError: there is no tokenizer, or it lacks one of these tokens.
        """
        return self._blank_texts.encode(self.tokenizer, text)

    @property
    def blank_text_end(self) -> tuple[int, ...]:
        """What the network expects behind a text that ends in no blank, before it fills one.

        The releases expect the token that ends a text: GLM's generate_samples.py, GLM-130B's
        generate.py and ChatGLM-6B's first tokenizer all add it. Our own networks have learnt
        without. Raises as ``blank_tokens``, and TokenizerError if there is no tokenizer.
        """
        end = self._blank_texts.end
        blanks = self.architecture.blanks
        assert blanks is not None, "it fills blanks"
        if blanks.several or end not in self.tokenizer.special_tokens:
            return ()
        return (self.tokenizer.special_tokens[end],)

    @property
    def _blank_texts(self) -> BlankTexts:
        texts = self._family.blank_texts
        if texts is None or not self.architecture.fills_blanks:
            raise InvalidParameterError(
                f"{self.name} is of the {self.family} family, whose networks see a text from left "
                "to right: they cannot fill a blank by what stands behind it, and only go on at "
                "the end (generate, chat). Blanks are filled by the first generation, ChatGLM-6B, "
                "and by what `glimmer pretrain` makes."
            )
        return texts

"""Glimmer's own tokenizers and chat templates behind transformers' interface.

Ours rather than a fast tokenizer made of the same files: the ids are then the engine's by
construction, also those of chats with tools, for which a template in Jinja would have to say again
what ``ChatTemplate`` does, and content cannot become control tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer
from transformers.utils import get_json_schema

from glimmer.catalogue import find_file
from glimmer.chat import ChatTemplate
from glimmer.checkpoints import Checkpoint
from glimmer.checkpoints.atomic import new_file
from glimmer.errors import InvalidParameterError, TokenizerError
from glimmer.families import Family
from glimmer.hf.tokenizer_files import (
    CONFIG,
    FAMILY_KEY,
    files_of,
    open_for_tokenizer,
    saved_family,
)
from glimmer.model_source import find_family
from glimmer.tokenizers import Tokenizer

# Of from_pretrained, where they choose among files and code; here there is one tokenizer.
_HUB_OPTIONS = frozenset({
    "cache_dir", "config", "force_download", "local_files_only", "revision", "subfolder", "token",
    "trust_remote_code", "use_fast",
})  # fmt: skip
# What apply_chat_template of transformers does only when it is asked to.
_OFF_BY_DEFAULT = frozenset({
    "continue_final_message", "return_assistant_tokens_mask", "sanitize_control_tokens",
})  # fmt: skip


def load_tokenizer(
    path: str | os.PathLike[str], family: str | None = None, **options: Any
) -> GlimmerTokenizer:
    """The tokenizer of a checkpoint, of a release by its name, or of a folder that holds no more
    than what ``save_pretrained`` wrote. ``options`` are ``PreTrainedTokenizer``'s, such as
    ``padding_side`` and ``model_max_length``.

    Raises:
        ModelNotFoundError: no such path or release.
        TokenizerError: there is no tokenizer, or a broken one.
        UnknownFamilyError: no family, or more than one, recognises the model.
    """
    found, _ = find_file(path)
    with open_for_tokenizer(found) as checkpoint:
        name = family or saved_family(found)
        return GlimmerTokenizer(find_family(checkpoint, name), checkpoint, **options)


class GlimmerTokenizer(PreTrainedTokenizer):
    """A tokenizer of any family.

    A text gets the ids that the family's official tokenizer puts around it, unless
    ``add_special_tokens=False``; control tokens written in a text are recognised where that one
    does so, unless ``split_special_tokens``. Batches are filled on the left. Made by
    ``load_tokenizer``.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(self, family: Family, checkpoint: Checkpoint, **kwargs: Any) -> None:
        self._bind(family, checkpoint)
        self._files = files_of(family, checkpoint, self._tokenizer)
        kwargs.setdefault("eos_token", self._texts[self._ends[0]])
        kwargs.setdefault("pad_token", self._texts[self._frame.padding])
        super().__init__(name_or_path=str(checkpoint.path), **kwargs)

    def _bind(self, family: Family, checkpoint: Checkpoint) -> None:
        """Take what the family makes of a checkpoint's files."""
        if not family.has_tokenizer(checkpoint):
            raise TokenizerError(
                f"{checkpoint.path} holds no tokenizer. Take the whole folder of the model, or a "
                "file that was converted with its tokenizer."
            )
        self._family_name = family.name
        self._tokenizer: Tokenizer = family.tokenizer(checkpoint)
        self._template: ChatTemplate = family.chat(checkpoint, self._tokenizer).template
        self._frame = family.text_frame(self._tokenizer)
        self._ends = tuple(family.stop_token_ids(self._tokenizer))
        known = {**self._tokenizer.special_tokens, **self._tokenizer.added_tokens}
        self._known_texts = {i: text for text, i in known.items()}
        self._control_ids = frozenset(self._tokenizer.special_tokens.values())

    def __getstate__(self) -> dict[str, Any]:
        """Without what the files give again: it cannot be pickled."""
        made = {"_tokenizer", "_template", "_frame", "_ends", "_known_texts", "_control_ids"}
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with open_for_tokenizer(Path(self.name_or_path)) as checkpoint:
            self._bind(find_family(checkpoint, self._family_name), checkpoint)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocab)

    @cached_property
    def _vocab(self) -> Mapping[str, int]:
        """Ids by a text of their own: what they write, or a number where another writes that."""
        vocab: dict[str, int] = {}
        for i, text in sorted(self._known_texts.items()):
            vocab[text] = i
        for i in range(self.vocab_size):
            if i not in self._known_texts:
                vocab[self._unique_text(i, vocab)] = i
        return vocab

    @cached_property
    def _texts(self) -> Mapping[int, str]:
        return {i: text for text, i in self._vocab.items()}

    def _unique_text(self, token_id: int, taken: Mapping[str, int]) -> str:
        text = self._text_of(token_id)
        return text if text and text not in taken else f"<|{token_id}|>"

    def _text_of(self, token_id: int) -> str:
        if token_id in self._known_texts:
            return self._known_texts[token_id]
        written = self._tokenizer.token_bytes(token_id)
        try:
            return written.decode() or f"<|{token_id}|>"
        except UnicodeDecodeError:  # a part of a character
            return "".join(f"<0x{byte:02X}>" for byte in written)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._vocab.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._texts[index]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        safe = kwargs.get("split_special_tokens", self.split_special_tokens)
        return [self._texts[i] for i in self._tokenizer.encode(text, allow_special=not safe)]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        ids = [*self._frame.before, *token_ids_0, *self._frame.behind]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self._ends[0]]

    def _decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(map(int, token_ids))
        if skip_special_tokens:
            return self._tokenizer.decode(i for i in ids if i not in self._control_ids)
        return "".join(self._written(ids))

    def _written(self, ids: Iterable[int]) -> Iterable[str]:
        """Pieces of the text in which control tokens can be read."""
        run: list[int] = []
        for i in ids:
            if i in self._control_ids:
                yield self._tokenizer.decode(run)
                yield self._known_texts[i]
                run = []
            else:
                run.append(i)
        yield self._tokenizer.decode(run)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        thinking: bool | None = None,
        enable_thinking: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; the ids are those of ``ChatTemplate.encode``, and of a batch where
        ``conversation`` is a list of conversations. ``enable_thinking`` is what GLM-4.5's own
        template calls ``thinking``.

        Raises:
            InvalidParameterError: a message that the family cannot say, or an option that has no
                meaning without a template in Jinja.
        """
        refused = {**kwargs, "documents": documents, "chat_template": chat_template}
        asked = [
            name
            for name, value in refused.items()
            if value is not None and not (value is False and name in _OFF_BY_DEFAULT)
        ]
        if asked:
            raise InvalidParameterError(
                f"{', '.join(asked)} cannot be given here: the chat template is the family's own, "
                "and no Jinja. It takes messages, tools, thinking (or enable_thinking) and "
                "add_generation_prompt."
            )
        if None not in (thinking, enable_thinking) and thinking != enable_thinking:
            raise InvalidParameterError(
                f"thinking is {thinking} and enable_thinking {enable_thinking}, which are two "
                "names of one thing: give one of them."
            )
        thinking = enable_thinking if thinking is None else thinking
        described = [
            tool if isinstance(tool, Mapping) else get_json_schema(tool) for tool in tools or ()
        ]
        is_batch = bool(conversation) and isinstance(conversation[0], list | tuple)
        ids = [
            self._template.encode(messages, described, add_generation_prompt, thinking=thinking)
            for messages in (conversation if is_batch else [conversation])
        ]
        if not tokenize:
            texts = ["".join(self._written(row)) for row in ids]
            return texts if is_batch else texts[0]
        encoded = self(
            ids if is_batch else ids[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoded if return_dict else encoded["input_ids"]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *_args: Any,
        push_to_hub: bool = False,
        **_kwargs: Any,
    ) -> tuple[str, ...]:
        """Write the tokenizer's own files, as they came, and in tokenizer_config.json the family,
        so that ``load_tokenizer`` and the engine read the folder.

        Raises:
            InvalidParameterError: ``push_to_hub``.
            OutputError: it cannot be written.
        """
        if push_to_hub:
            raise InvalidParameterError(
                "push_to_hub cannot be given here: nothing leaves this machine. Save the folder, "
                "and upload it with the hub's own program."
            )
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads(self._files.get(CONFIG, b"{}"))
        config.pop("auto_map", None)  # code that is not here
        config[FAMILY_KEY] = self._family_name
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        written = []
        for name, data in {**self._files, CONFIG: text.encode()}.items():
            with new_file(folder / name, size_bytes=len(data), overwrite=True) as stream:
                stream.write(data)
            written.append(str(folder / name))
        return tuple(written)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *_args: Any, **kwargs: Any) -> Any:
        """``load_tokenizer``; options that choose among a hub's files and code mean nothing."""
        options = {name: value for name, value in kwargs.items() if name not in _HUB_OPTIONS}
        return load_tokenizer(path, **options)

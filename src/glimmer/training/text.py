"""The text side of a checkpoint, without its weights: family, tokenizer, chat. Knows no torch."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from glimmer.architecture import Architecture
from glimmer.catalogue import find_file
from glimmer.checkpoints import Checkpoint, PackedCheckpoint, open_checkpoint
from glimmer.errors import TokenizerError
from glimmer.export import own_chat_template
from glimmer.families import Family
from glimmer.families.family import Chat
from glimmer.loader import described
from glimmer.packed_source import PackedSource
from glimmer.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class TextSide:
    """What turns conversations into ids for one model, and what its network is."""

    path: Path
    family: Family
    architecture: Architecture
    tokenizer: Tokenizer
    chat: Chat
    stop_token_ids: tuple[int, ...]
    """The ids that end an answer."""
    pad_token_id: int
    """What rows are filled with; the network does not see it."""
    stored_dtype: str
    """What most weights are stored in."""
    jinja: str | None
    """The chat template that came with the files, if one did."""


def open_text(model: str | os.PathLike[str], family: str | None = None) -> TextSide:
    """The text side of a file, folder or release.

    Raises:
        ModelNotFoundError: no such path or release.
        CheckpointError: the files are at fault.
        TokenizerError: they hold no tokenizer.
        InvalidParameterError: a packed folder, whose weights are the engine's alone.
    """
    path, _ = find_file(model)
    with open_checkpoint(path) as checkpoint:
        if isinstance(checkpoint, PackedCheckpoint):
            raise PackedSource.refusal(checkpoint)
        return _text_side(checkpoint, family)


def _text_side(checkpoint: Checkpoint, family: str | None) -> TextSide:
    facts = described(checkpoint, family)
    tokenizer, chat = facts.tokenizer, facts.chat
    if tokenizer is None or chat is None:
        raise TokenizerError(
            f"{checkpoint.path} holds no tokenizer, so no text can be trained on: add the files of "
            "its release's tokenizer."
        )
    stop_token_ids = tuple(facts.family.stop_token_ids(tokenizer))
    pad_token_id = checkpoint.metadata.get("pad_token_id")
    return TextSide(
        path=Path(checkpoint.path),
        family=facts.family,
        architecture=facts.architecture,
        tokenizer=tokenizer,
        chat=chat,
        stop_token_ids=stop_token_ids,
        pad_token_id=pad_token_id if isinstance(pad_token_id, int) else stop_token_ids[0],
        stored_dtype=_stored_dtype(checkpoint),
        jinja=own_chat_template(checkpoint),
    )


def _stored_dtype(checkpoint: Checkpoint) -> str:
    counts: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        counts[tensor.dtype] += math.prod(tensor.shape)
    return counts.most_common(1)[0][0]

"""ChatGLM2's tokenizer: SentencePiece BPE, and control tokens that the official code appends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from glimmer.checkpoints import Checkpoint
from glimmer.errors import TokenizerError
from glimmer.families.family import TextFrame
from glimmer.tokenizers import SentencePieceTokenizer, Tokenizer, load_model, model_from_gguf

FILE = "tokenizer.model"
MASK, GMASK, SMASK, START, END = "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"
SPECIAL_TOKENS = (MASK, GMASK, SMASK, START, END)
END_OF_TEXT = "</s>"
UNKNOWN = 0
"""The id of <unk>, with which the official tokenizer fills batches."""


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    if checkpoint.format == "gguf":
        return "tokenizer.ggml.model" in checkpoint.metadata
    return checkpoint.file(FILE) is not None


def load(
    checkpoint: Checkpoint,
    special_tokens: Sequence[str],
    *,
    recognised: Iterable[str] = (),
    printed: Iterable[str] = (),
) -> SentencePieceTokenizer:
    """The model of a folder or a GGUF file with these control tokens behind its pieces."""
    if checkpoint.format == "gguf":
        data, appended = model_from_gguf(checkpoint.metadata, checkpoint.path)
        what = f"{checkpoint.path} (tokenizer.ggml)"
        if appended[: len(special_tokens)] != list(special_tokens):
            raise TokenizerError(
                f"{what}: behind the pieces come {', '.join(appended) or 'no control tokens'}, "
                f"but this family has {', '.join(special_tokens)}"
            )
    else:
        file = checkpoint.file(FILE)
        assert file is not None, "has_tokenizer comes first"
        data, what = file.read_bytes(), str(file)
    return SentencePieceTokenizer(
        load_model(data, what),
        model_bytes=data,
        special_tokens=special_tokens,
        recognised=recognised,
        printed=printed,
    )


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return load(checkpoint, SPECIAL_TOKENS)


def end_of_text(tokenizer: Tokenizer) -> int:
    tokens = tokenizer.special_tokens
    return tokens.get(END_OF_TEXT, tokens.get("<eos>", 2))  # llama.cpp's converter renames it


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    return (end_of_text(tokenizer),)


def text_frame(tokenizer: Tokenizer) -> TextFrame:
    tokens = tokenizer.special_tokens
    return TextFrame(before=(tokens[GMASK], tokens[START]), padding=UNKNOWN)

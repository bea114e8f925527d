"""How text is cut into the pieces inside which BPE merges. Data: one entry per convention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d"
    r"| ?\p{L}+"
    r"| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)
_GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    pattern: str
    """Its matches are the pieces (Oniguruma syntax); text between matches is a piece as well."""
    individual_digits: bool = False
    """Whether each digit is cut off by itself first."""
    ignore_merges: bool = False
    """Whether a piece that is a token as a whole is taken without merging, as tiktoken does."""


GLM4_PRE_TOKENIZER = PreTokenizer(_GLM4_PATTERN, ignore_merges=True)
GGUF_PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "smollm": PreTokenizer(_GPT2_PATTERN, individual_digits=True),
        "chatglm-bpe": GLM4_PRE_TOKENIZER,
        "glm4": GLM4_PRE_TOKENIZER,
    }
)
"""By the value of ``tokenizer.ggml.pre``. Names as in llama.cpp (llama-vocab.cpp); patterns as in
the tokenizer.json of SmolLM2 and GLM-4."""

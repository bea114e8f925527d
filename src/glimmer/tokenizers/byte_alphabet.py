"""GPT-2's alphabet: one printable character for each of the 256 bytes.

Byte-level vocabularies spell their tokens in it, so that any bytes are printable text without
spaces. Bytes that Latin-1 prints stand for themselves; the others follow from U+0100 on, in order
(bytes_to_unicode in https://github.com/openai/gpt-2/blob/master/src/encoder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_PRINTABLE = frozenset((*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTE_OF: Mapping[str, int] = MappingProxyType(
    {chr(byte): byte for byte in sorted(_PRINTABLE)}
    | {chr(0x100 + index): byte for index, byte in enumerate(_OTHERS)}
)
"""The byte that each of the 256 characters stands for."""

"""What does a file that is not the expected one look like? For error messages only."""

from __future__ import annotations

HEAD_BYTES = 512
"""How many leading bytes ``describe_content`` wants to see."""

# (leading bytes, what such a file is, what to do)
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, a few lines of text in place of the model",
        "fetch the file itself with `git lfs pull`",
    ),
    (
        b"PK\x03\x04",
        "a zip archive, such as a PyTorch checkpoint",
        "give the folder that it lies in with its config.json",
    ),
    (
        b"\x80",
        "a pickle, such as a PyTorch checkpoint of no known kind",
        "get the model as safetensors",
    ),
    (b"lmgg", "a GGML file, older than GGUF", "convert the model to GGUF again"),
    (b"fmgg", "a GGMF file, older than GGUF", "convert the model to GGUF again"),
    (b"tjgg", "a GGJT file, older than GGUF", "convert the model to GGUF again"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
)


def describe_content(head: bytes) -> str:
    """What a file that begins with ``head`` looks like and what to do, as the end of a sentence."""
    if not head:
        return "an empty file; download it again"
    for signature, what, advice in _SIGNATURES:
        if head.startswith(signature):
            return f"{what}; {advice}"
    if _is_safetensors(head):
        return "a safetensors file; give the folder that it lies in with its config.json"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps a login or error page saved as a model; download the file again"
    if text.startswith(b"{"):
        return "JSON, perhaps a model's config; give the file that holds the weights"
    return f"an unknown format, beginning with the bytes {head[:8].hex(' ')}; give a GGUF file"


def _is_safetensors(head: bytes) -> bool:
    # u64 length of a JSON header, then that header: https://github.com/huggingface/safetensors
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000

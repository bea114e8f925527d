"""A whole tiny model as a GGUF file: random weights and a tokenizer trained on a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimmer.architecture import Architecture, Rope
from glimmer.families.smollm.weights import GGUF as LAYOUT
from tests.support.gguf_writer import write_gguf
from tests.support.tiny import encode, random_weights
from tests.support.tiny_bpe import tiny_bpe_metadata

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]


def tiny_architecture(**choices: Any) -> Architecture:
    vocab_size = len(tiny_bpe_metadata()["tokenizer.ggml.tokens"])
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "max_position": 256,
        "rope": Rope(dims=16, base=10000.0),
        "norm_eps": 1e-5,
        "tied_head": True,
    }
    return Architecture(**{**sizes, **choices})


def tiny_metadata(architecture: Architecture) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.vocab_size": architecture.vocab_size,
        "llama.embedding_length": architecture.hidden_size,
        "llama.block_count": architecture.num_layers,
        "llama.attention.head_count": architecture.num_heads,
        "llama.attention.head_count_kv": architecture.num_kv_heads,
        "llama.feed_forward_length": architecture.intermediate_size,
        "llama.context_length": architecture.max_position,
        "llama.rope.dimension_count": architecture.rope.dims,
        "llama.rope.freq_base": architecture.rope.base,
        "llama.attention.layer_norm_rms_epsilon": architecture.norm_eps,
        **tiny_bpe_metadata(),
    }


def tiny_tensors(architecture: Architecture, dtype: str = "q4_0", seed: int = 0) -> Stored:
    tensors: Stored = {}
    for name, weight in random_weights(architecture, seed).items():
        kept = dtype if weight.ndim == 2 else "float32"
        stored = encode(kept, weight)[0].tobytes()
        tensors[LAYOUT.pieces_of(name)[0].tensor] = (kept, weight.shape, stored)
    return tensors


def tiny_gguf(
    path: Path,
    dtype: str = "q4_0",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]] | None = None,
    **choices: Any,
) -> Path:
    """Write the model; ``metadata`` and ``tensors`` replace single entries, None removes one."""
    architecture = tiny_architecture(**choices)
    keys = {**tiny_metadata(architecture), **(metadata or {})}
    stored = {**tiny_tensors(architecture, dtype), **(tensors or {})}
    return write_gguf(
        path,
        {key: item for key, item in keys.items() if item is not None},
        {name: item for name, item in stored.items() if item is not None},
    )

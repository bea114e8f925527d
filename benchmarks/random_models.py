"""Models of a given shape with random weights: speed does not depend on the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from glimmer.checkpoints.gguf_writer import GGUFValue, NewTensor, write_gguf
from glimmer.quantization import quantize

VOCAB_SIZE = 65024
Layout = Literal["chatglm", "llama"]
_BLOCKS = {"q4_0": (32, 18), "q8_0": (32, 34), "q4_k": (256, 144)}
"""Weights and bytes of a block."""
_FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k": 14}


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int

    @property
    def num_multiplied(self) -> int:
        """Weights that one token is multiplied with: all but the embedding, of which it takes a
        row."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = self.hidden * (2 * q + 2 * kv + 3 * self.inner)
        return self.layers * layer + VOCAB_SIZE * self.hidden

    def num_bytes(self, dtype: str) -> int:
        """Of these weights."""
        weights, size = _BLOCKS[dtype]
        return self.num_multiplied * size // weights


SHAPES = {
    "S": Shape(hidden=1024, layers=16, heads=16, kv_heads=2, head_dim=64, inner=4096),
    "L": Shape(hidden=4096, layers=28, heads=32, kv_heads=2, head_dim=128, inner=13696),
}
"""ChatGLM3-6B made small, 0.37 billion parameters; and ChatGLM3-6B."""
_CONTROLS = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>",
)  # fmt: skip


def write_random_model(
    path: Path, layout: Layout, shape: Shape = SHAPES["S"], dtype: str = "q4_0"
) -> None:
    """A GGUF file whose matrices are all ``dtype``, head included; q8_0 where a row does not fill
    whole blocks. "llama" is the same work for engines that know no GLM."""
    tile = np.random.default_rng(0).standard_normal(2**22, dtype=np.float32) * 0.02
    blocks = {name: quantize(name, tile.reshape(-1, 1024)).reshape(-1) for name in {dtype, "q8_0"}}
    ones = np.ones(max(shape.inner, shape.hidden), np.float32)

    def matrix(name: str, rows: int, columns: int) -> NewTensor:
        stored = dtype if columns % _BLOCKS[dtype][0] == 0 else "q8_0"
        weights, num_bytes = _BLOCKS[stored]
        size = rows * columns // weights * num_bytes
        return NewTensor(name, stored, (rows, columns), lambda: np.resize(blocks[stored], size))

    def vector(name: str, length: int, scale: float = 1.0) -> NewTensor:
        return NewTensor(
            name, "float32", (length,), lambda: (ones[:length] * np.float32(scale)).view(np.uint8)
        )

    hidden, inner = shape.hidden, shape.inner
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = [
        matrix("token_embd.weight", VOCAB_SIZE, hidden),
        vector("output_norm.weight", hidden),
        matrix("output.weight", VOCAB_SIZE, hidden),
    ]
    for n in range(shape.layers):
        layer = f"blk.{n}."
        tensors += [vector(f"{layer}attn_norm.weight", hidden)]
        tensors += [vector(f"{layer}ffn_norm.weight", hidden)]
        tensors += [matrix(f"{layer}attn_output.weight", hidden, q)]
        tensors += [matrix(f"{layer}ffn_down.weight", hidden, inner)]
        if layout == "chatglm":
            tensors += [matrix(f"{layer}attn_qkv.weight", q + 2 * kv, hidden)]
            tensors += [vector(f"{layer}attn_qkv.bias", q + 2 * kv, 0.01)]
            tensors += [matrix(f"{layer}ffn_up.weight", 2 * inner, hidden)]
        else:
            tensors += [matrix(f"{layer}attn_q.weight", q, hidden)]
            tensors += [matrix(f"{layer}attn_{part}.weight", kv, hidden) for part in "kv"]
            tensors += [
                matrix(f"{layer}ffn_{part}.weight", inner, hidden) for part in ("gate", "up")
            ]
    with path.open("wb") as stream:
        write_gguf(stream, _metadata(layout, shape, dtype), tensors)


def _metadata(layout: Layout, shape: Shape, dtype: str) -> Mapping[str, GGUFValue]:
    keys: dict[str, GGUFValue] = {
        "context_length": 65536,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.inner,
        "block_count": shape.layers,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_dim // 2 if layout == "chatglm" else shape.head_dim,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB_SIZE,
    }
    tokens, types, merges = _vocabulary()
    return {
        "general.architecture": layout,
        "general.name": "random",
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **{f"{layout}.{key}": value for key, value in keys.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "chatglm-bpe" if layout == "chatglm" else "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": VOCAB_SIZE - len(_CONTROLS),
        "tokenizer.ggml.bos_token_id": VOCAB_SIZE - len(_CONTROLS),
        "tokenizer.ggml.add_bos_token": False,
    }


def _vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Bytes as byte-level BPE spells them, pairs of letters, and names for the rest."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = [f"{a} {b}" for a in letters for b in letters]
    tokens = [*map(chr, plain), *(chr(256 + i) for i in range(len(others)))]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"<x{i}>" for i in range(VOCAB_SIZE - len(_CONTROLS) - len(tokens))]
    types = [1] * len(tokens) + [3] * len(_CONTROLS)
    return [*tokens, *_CONTROLS], types, merges

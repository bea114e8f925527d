"""Models of a given shape with random weights: speed does not depend on the values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from glimmer.checkpoints.gguf_writer import GGUFValue, NewTensor, write_gguf
from glimmer.quantization import quantize

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 1024, 16, 16, 2, 64, 4096
VOCAB_SIZE = 65024
"""ChatGLM3-6B's network made small: 0.37 billion parameters."""

Layout = Literal["chatglm", "llama"]
_CONTROLS = (
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>",
)  # fmt: skip


def write_random_model(path: Path, layout: Layout) -> None:
    """A GGUF file in q4_0, head included; "llama" is the same work for engines that know no GLM."""
    tile = np.random.default_rng(0).standard_normal(2**22, dtype=np.float32) * 0.02
    blocks = quantize("q4_0", tile.reshape(-1, HIDDEN)).reshape(-1)
    ones = np.ones(INNER, np.float32)

    def matrix(name: str, rows: int, columns: int) -> NewTensor:
        size = rows * columns // 32 * 18
        return NewTensor(name, "q4_0", (rows, columns), lambda: np.resize(blocks, size))

    def vector(name: str, length: int, scale: float = 1.0) -> NewTensor:
        return NewTensor(
            name, "float32", (length,), lambda: (ones[:length] * np.float32(scale)).view(np.uint8)
        )

    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors = [
        matrix("token_embd.weight", VOCAB_SIZE, HIDDEN),
        vector("output_norm.weight", HIDDEN),
        matrix("output.weight", VOCAB_SIZE, HIDDEN),
    ]
    for n in range(LAYERS):
        layer = f"blk.{n}."
        tensors += [vector(f"{layer}attn_norm.weight", HIDDEN)]
        tensors += [vector(f"{layer}ffn_norm.weight", HIDDEN)]
        tensors += [matrix(f"{layer}attn_output.weight", HIDDEN, q)]
        tensors += [matrix(f"{layer}ffn_down.weight", HIDDEN, INNER)]
        if layout == "chatglm":
            tensors += [matrix(f"{layer}attn_qkv.weight", q + 2 * kv, HIDDEN)]
            tensors += [vector(f"{layer}attn_qkv.bias", q + 2 * kv, 0.01)]
            tensors += [matrix(f"{layer}ffn_up.weight", 2 * INNER, HIDDEN)]
        else:
            tensors += [matrix(f"{layer}attn_q.weight", q, HIDDEN)]
            tensors += [matrix(f"{layer}attn_{part}.weight", kv, HIDDEN) for part in "kv"]
            tensors += [
                matrix(f"{layer}ffn_{part}.weight", INNER, HIDDEN) for part in ("gate", "up")
            ]
    with path.open("wb") as stream:
        write_gguf(stream, _metadata(layout), tensors)


def _metadata(layout: Layout) -> Mapping[str, GGUFValue]:
    keys: dict[str, GGUFValue] = {
        "context_length": 8192,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD_DIM // 2 if layout == "chatglm" else HEAD_DIM,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB_SIZE,
    }
    tokens, types, merges = _vocabulary()
    return {
        "general.architecture": layout,
        "general.name": "random",
        "general.file_type": 2,
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

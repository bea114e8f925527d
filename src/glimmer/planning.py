"""What memory a model takes on this machine, told from its network alone: nothing is downloaded.

Every part is counted as the engine lays it out (csrc/core): weights in strips of 16 rows, keys and
values in blocks of 32 tokens, the buffers of one step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glimmer.architecture import Architecture
from glimmer.engine.engine import MAX_BATCH_TOKENS
from glimmer.errors import InvalidParameterError
from glimmer.loader import load_order
from glimmer.native import BLOCK_SIZE, kv_block_bytes
from glimmer.native.model import KVDType
from glimmer.quantization import SCHEMES

_STRIP_ROWS = 16
# Bytes that 16 rows of 32 weights take when packed (kDTypes in csrc/core/dtype.h).
_PACKED_BYTES = {
    "float32": 2048, "float16": 1024, "bfloat16": 1024, "q8_0": 544, "q4_0": 288, "q4_1": 320,
    "q5_0": 544, "q5_1": 624, "q4_k": 352, "q5_k": 624, "q6_k": 624,
}  # fmt: skip
_INPUT_BYTES = (
    4 + 32 * 2 / 32 + 16 / 32
)  # of one input in its widest packed form, float32 beside it
# Interpreter, libraries and the program itself; measured, and the same for every model.
_PROGRAM_BYTES = 47 << 20
# A vocabulary's tables; measured: 420 for byte-level BPE, 200 for SentencePiece.
_TOKENIZER_BYTES_PER_TOKEN = 320


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes by what they are for."""

    weights: int
    kv_cache: int
    working: int
    """Buffers of one step."""
    tokenizer: int
    program: int
    loading: int
    """The most that weights take while they are packed, one tensor of the file beside them."""

    @property
    def running(self) -> int:
        return self.weights + self.kv_cache + self.working + self.tokenizer + self.program

    @property
    def peak(self) -> int:
        """The most that is taken at any time: while loading, or at a full context."""
        return max(self.loading + self.tokenizer + self.program, self.running)


def plan(
    architecture: Architecture,
    dtypes: Mapping[str, str],
    stored: Mapping[str, str],
    *,
    context: int,
    batch: int = 1,
    kv_dtype: KVDType = "float16",
    has_tokenizer: bool = True,
    mapped: bool = False,
) -> Plan:
    """The memory of ``batch`` conversations of ``context`` tokens each.

    ``dtypes`` gives, by canonical name, what each weight is once it is loaded, and ``stored`` what
    it is in the file; ``mapped`` says that the file is packed, and its weights run where they lie.

    Raises:
        InvalidParameterError: ``context`` is not positive, or beyond what the network can.
    """
    if not 1 <= context <= architecture.max_position:
        raise InvalidParameterError(
            f"The context must be between 1 and the {architecture.max_position} tokens that the "
            f"model was built for, but it is {context}."
        )
    if batch < 1:
        raise InvalidParameterError(f"The batch must be at least 1, but it is {batch}.")
    shapes = architecture.weight_shapes()
    sizes = {name: packed_bytes(dtypes[name], shape) for name, shape in shapes.items()}
    blocks = batch * math.ceil(context / BLOCK_SIZE)
    prefix = math.ceil(architecture.prefix_length / BLOCK_SIZE)
    return Plan(
        weights=sum(sizes.values()),
        kv_cache=(blocks + prefix) * kv_block_bytes(architecture, kv_dtype),
        working=_working_bytes(architecture, context, batch),
        tokenizer=_TOKENIZER_BYTES_PER_TOKEN * architecture.vocab_size if has_tokenizer else 0,
        program=_PROGRAM_BYTES,
        loading=_loading_bytes(shapes, sizes, dtypes, stored, mapped),
    )


def _loading_bytes(
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    dtypes: Mapping[str, str],
    stored: Mapping[str, str],
    mapped: bool,
) -> int:
    packed, most = 0, 0
    for name in load_order(shapes):
        packed += sizes[name]
        if not mapped:
            source = SCHEMES[stored[name]].size_bytes(shapes[name])
        else:
            converted = dtypes[name] != stored[name]
            source = packed_bytes(stored[name], shapes[name]) if converted else 0
        most = max(most, packed + source)
    return most


def packed_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Of one weight in the engine."""
    if len(shape) == 1:
        return 4 * shape[0]
    rows, columns = shape
    strips = math.ceil(rows / _STRIP_ROWS)
    return strips * math.ceil(columns * _PACKED_BYTES[dtype] / 32)


def _working_bytes(a: Architecture, context: int, batch: int) -> int:
    tokens = min(context, context if a.needs_whole_prompts else max(MAX_BATCH_TOKENS, batch))
    query, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    widest = max(a.hidden_size, query, a.intermediate_size)
    gates = 2 if a.mlp == "swiglu" else 1
    floats = a.hidden_size + query + 2 * kv + query + gates * a.intermediate_size
    if a.norm_place == "sandwich" or a.residual == "normed":
        floats += a.hidden_size
    if (e := a.experts) is not None:
        shared = e.intermediate_size * e.num_shared_experts
        pairs = e.num_experts_per_token + (1 if e.num_shared_experts else 0)
        floats += pairs * (2 * max(e.intermediate_size, shared) + a.hidden_size)
    logits = 2 * batch * a.vocab_size * 4  # as they are, and as the sampler changes them
    return int(tokens * (4 * floats + _INPUT_BYTES * widest)) + logits

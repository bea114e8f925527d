from collections.abc import Sequence
import enum
from typing import Annotated

import numpy
from numpy.typing import NDArray


BLOCK_SIZE: int = 32

PACKED_ALIGNMENT: int = 64

PACKED_LAYOUT: int = 1

def trim_heap() -> None: ...

def instruction_sets() -> list[str]: ...

def find_instruction_set(arg: str, /) -> str: ...

def dtypes() -> list[str]: ...

class Form(enum.Enum):
    int8 = 1

    int16 = 2

class KVDType(enum.Enum):
    float32 = 0

    float16 = 1

    int8 = 2

class Norm(enum.Enum):
    rms = 0

    layer = 1

class NormPlace(enum.Enum):
    pre = 0

    sandwich = 1

class Residual(enum.Enum):
    input = 0

    normed = 1

class Mask(enum.Enum):
    causal = 0

    prefix = 1

class Mlp(enum.Enum):
    swiglu = 0

    gelu_tanh = 1

class RopePairing(enum.Enum):
    interleaved = 0

    half = 1

class RopeDimensions(enum.Enum):
    one = 0

    two = 1

class Experts:
    def __init__(self) -> None: ...

    @property
    def num_experts(self) -> int: ...

    @num_experts.setter
    def num_experts(self, arg: int, /) -> None: ...

    @property
    def num_experts_per_token(self) -> int: ...

    @num_experts_per_token.setter
    def num_experts_per_token(self, arg: int, /) -> None: ...

    @property
    def num_shared_experts(self) -> int: ...

    @num_shared_experts.setter
    def num_shared_experts(self, arg: int, /) -> None: ...

    @property
    def intermediate_size(self) -> int: ...

    @intermediate_size.setter
    def intermediate_size(self, arg: int, /) -> None: ...

    @property
    def num_dense_layers(self) -> int: ...

    @num_dense_layers.setter
    def num_dense_layers(self, arg: int, /) -> None: ...

    @property
    def num_groups(self) -> int: ...

    @num_groups.setter
    def num_groups(self, arg: int, /) -> None: ...

    @property
    def num_groups_per_token(self) -> int: ...

    @num_groups_per_token.setter
    def num_groups_per_token(self, arg: int, /) -> None: ...

    @property
    def normalize_weights(self) -> bool: ...

    @normalize_weights.setter
    def normalize_weights(self, arg: bool, /) -> None: ...

    @property
    def routed_scale(self) -> float: ...

    @routed_scale.setter
    def routed_scale(self, arg: float, /) -> None: ...

class Architecture:
    def __init__(self) -> None: ...

    def check(self) -> None: ...

    @property
    def vocab_size(self) -> int: ...

    @vocab_size.setter
    def vocab_size(self, arg: int, /) -> None: ...

    @property
    def hidden_size(self) -> int: ...

    @hidden_size.setter
    def hidden_size(self, arg: int, /) -> None: ...

    @property
    def num_layers(self) -> int: ...

    @num_layers.setter
    def num_layers(self, arg: int, /) -> None: ...

    @property
    def num_heads(self) -> int: ...

    @num_heads.setter
    def num_heads(self, arg: int, /) -> None: ...

    @property
    def num_kv_heads(self) -> int: ...

    @num_kv_heads.setter
    def num_kv_heads(self, arg: int, /) -> None: ...

    @property
    def head_dim(self) -> int: ...

    @head_dim.setter
    def head_dim(self, arg: int, /) -> None: ...

    @property
    def intermediate_size(self) -> int: ...

    @intermediate_size.setter
    def intermediate_size(self, arg: int, /) -> None: ...

    @property
    def norm(self) -> Norm: ...

    @norm.setter
    def norm(self, arg: Norm, /) -> None: ...

    @property
    def norm_place(self) -> NormPlace: ...

    @norm_place.setter
    def norm_place(self, arg: NormPlace, /) -> None: ...

    @property
    def norm_eps(self) -> float: ...

    @norm_eps.setter
    def norm_eps(self, arg: float, /) -> None: ...

    @property
    def residual(self) -> Residual: ...

    @residual.setter
    def residual(self, arg: Residual, /) -> None: ...

    @property
    def residual_scale(self) -> float: ...

    @residual_scale.setter
    def residual_scale(self, arg: float, /) -> None: ...

    @property
    def rope_dims(self) -> int: ...

    @rope_dims.setter
    def rope_dims(self, arg: int, /) -> None: ...

    @property
    def rope_base(self) -> float: ...

    @rope_base.setter
    def rope_base(self, arg: float, /) -> None: ...

    @property
    def rope_linear_scale(self) -> float: ...

    @rope_linear_scale.setter
    def rope_linear_scale(self, arg: float, /) -> None: ...

    @property
    def rope_pairing(self) -> RopePairing: ...

    @rope_pairing.setter
    def rope_pairing(self, arg: RopePairing, /) -> None: ...

    @property
    def rope_positions(self) -> RopeDimensions: ...

    @rope_positions.setter
    def rope_positions(self, arg: RopeDimensions, /) -> None: ...

    @property
    def rope_half_frequencies(self) -> bool: ...

    @rope_half_frequencies.setter
    def rope_half_frequencies(self, arg: bool, /) -> None: ...

    @property
    def mask(self) -> Mask: ...

    @mask.setter
    def mask(self, arg: Mask, /) -> None: ...

    @property
    def mlp(self) -> Mlp: ...

    @mlp.setter
    def mlp(self, arg: Mlp, /) -> None: ...

    @property
    def qkv_bias(self) -> bool: ...

    @qkv_bias.setter
    def qkv_bias(self, arg: bool, /) -> None: ...

    @property
    def attention_out_bias(self) -> bool: ...

    @attention_out_bias.setter
    def attention_out_bias(self, arg: bool, /) -> None: ...

    @property
    def mlp_bias(self) -> bool: ...

    @mlp_bias.setter
    def mlp_bias(self, arg: bool, /) -> None: ...

    @property
    def qk_norm(self) -> bool: ...

    @qk_norm.setter
    def qk_norm(self, arg: bool, /) -> None: ...

    @property
    def experts(self) -> Experts | None: ...

    @experts.setter
    def experts(self, arg: Experts | None, /) -> None: ...

    @property
    def prefix_length(self) -> int: ...

    @prefix_length.setter
    def prefix_length(self, arg: int, /) -> None: ...

    @property
    def tied_head(self) -> bool: ...

    @tied_head.setter
    def tied_head(self, arg: bool, /) -> None: ...

class KVCache:
    def __init__(self, arg0: Decoder, arg1: KVDType, arg2: int, /) -> None: ...

    def copy_block(self, arg0: int, arg1: int, /) -> None: ...

    @property
    def num_blocks(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

def kv_block_bytes(arg0: Architecture, arg1: KVDType, /) -> int: ...

class KVPrefix:
    def __init__(self, decoder: Decoder, dtype: KVDType, rows: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None, None), order='C', device='cpu', writable=False)]) -> None: ...

    @property
    def length(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

class Lora:
    def __init__(self, arg: Architecture, /) -> None: ...

    def add(self, name: str, scale: float, a: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], b: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], shared_a: str) -> None: ...

    @property
    def size_bytes(self) -> int: ...

class Sampling:
    def __init__(self, arg0: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg1: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg2: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg3: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg4: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], arg5: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], arg6: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg7: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg8: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg9: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg10: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg11: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg12: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg13: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg14: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], arg15: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], arg16: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], /) -> None: ...

def sample(isa: str, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], sampling: Sampling, num_logprobs: int, out_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], out_logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], out_top_ids: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu')], out_top_logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

class Decoder:
    def __init__(self, arg0: Architecture, arg1: int, arg2: str, arg3: Form, arg4: Sequence[int], /) -> None: ...

    @property
    def isa(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    @property
    def packed_bytes(self) -> int: ...

    def load(self, arg0: str, arg1: str, arg2: Sequence[int], arg3: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], arg4: str | None, /) -> None: ...

    def kept(self, arg0: str, arg1: str, arg2: Sequence[int], arg3: str | None, /) -> tuple[str, int]: ...

    def pack(self, arg0: str, arg1: str, arg2: Sequence[int], arg3: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], arg4: str | None, arg5: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], /) -> None: ...

    def adopt(self, arg0: str, arg1: str, arg2: Sequence[int], arg3: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], arg4: str | None, arg5: bool | None, /) -> bool: ...

    def finish(self) -> None: ...

    def step(self, cache: KVCache, token_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], positions: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], block_positions: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, query_lengths: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], kv_lengths: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], context_lengths: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, block_tables: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], loras: Sequence[Lora], prefixes: Sequence[KVPrefix], logit_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], sampling: Sampling | None, num_logprobs: int, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None, hidden: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None, out_ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], out_logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], out_top_ids: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu')], out_top_logprobs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None: ...

"""The C++ core: weights, paged KV cache and whole steps. Knows no file and no text."""

from glimmer.native.adapter_weights import KVPrefix, Lora
from glimmer.native.cpu import available_memory, physical_cores
from glimmer.native.model import (
    BLOCK_SIZE,
    PACKED_ALIGNMENT,
    PACKED_LAYOUT,
    KVCache,
    NativeModel,
    SamplingInput,
    StepInput,
    StepResult,
    check_architecture,
    instruction_set,
    instruction_sets,
    kv_block_bytes,
    sample,
    trim_heap,
)

__all__ = [
    "BLOCK_SIZE",
    "PACKED_ALIGNMENT",
    "PACKED_LAYOUT",
    "KVCache",
    "KVPrefix",
    "Lora",
    "NativeModel",
    "SamplingInput",
    "StepInput",
    "StepResult",
    "available_memory",
    "check_architecture",
    "instruction_set",
    "instruction_sets",
    "kv_block_bytes",
    "physical_cores",
    "sample",
    "trim_heap",
]

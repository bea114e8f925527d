"""ik_llama.cpp, llama.cpp's fastest fork for processors, through its C interface, as
ik-llama-cpp-python ships it. Runs in a process of its own."""

from __future__ import annotations

import ctypes
import json
import time
from pathlib import Path
from typing import Any

import ik_llama_cpp._ctypes_api as lib

from benchmarks import child, load_times, workload
from benchmarks.peers.llama_cpp import LlamaCppEngine
from benchmarks.random_models import VOCAB_SIZE

_Context, _Int, _Size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
_Bytes = ctypes.POINTER(ctypes.c_uint8)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """One that the library has and the package does not declare."""
    found = getattr(lib._lib, f"llama_{name}")
    found.restype, found.argtypes = result, arguments
    return found


_seq_rm = _function("kv_cache_seq_rm", ctypes.c_bool, _Context, _Int, _Int, _Int)
_seq_add = _function("kv_cache_seq_add", None, _Context, _Int, _Int, _Int, _Int)
_seq_cp = _function("kv_cache_seq_cp", None, _Context, _Int, _Int, _Int, _Int)
# The last argument of these is flags.
_state_seq_get_size = _function("state_seq_get_size", _Size, _Context, _Int, _Int)
_state_seq_get_data = _function("state_seq_get_data", _Size, _Context, _Bytes, _Size, _Int, _Int)
_state_seq_set_data = _function("state_seq_set_data", _Size, _Context, _Bytes, _Size, _Int, _Int)


class IkLlamaCppEngine(LlamaCppEngine):
    """With the weights repacked at load, which is its fastest way."""

    def __init__(self, model: Path, num_threads: int, num_sequences: int, room: int) -> None:
        self._lib = lib
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.repack_tensors = True
        model_params.use_mmap = False
        self._model = lib.llama_model_load_from_file(str(model).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"ik_llama.cpp does not load {model.name}")
        params = lib.llama_context_default_params()
        params.n_ctx = 256 * num_sequences if num_sequences > 1 else room
        params.n_batch = params.n_ubatch = workload.PREFILL_TOKENS
        params.n_seq_max = max(num_sequences, 2)  # ``extend`` copies through a second one
        params.n_threads = params.n_threads_batch = num_threads
        params.flash_attn = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("ik_llama.cpp refuses the context")
        self._batch = lib.llama_batch_init(workload.PREFILL_TOKENS, 0, 1)
        self._length = 0
        self.vocab_size = VOCAB_SIZE

    def clear(self) -> None:
        lib.llama_kv_cache_clear(self._context)
        self._length = 0

    def extend(self, length: int) -> None:
        """See ``workload.ContextEngine``."""
        context, num_read = self._context, workload.CONTEXT_PROMPT_TOKENS
        _seq_rm(context, 0, num_read, -1)
        size = _state_seq_get_size(context, 0, 0)
        state = (ctypes.c_uint8 * size)()
        if _state_seq_get_data(context, state, size, 0, 0) != size:
            raise RuntimeError("ik_llama.cpp does not give its cache")
        for start in range(num_read, length, num_read):
            if not _state_seq_set_data(context, state, size, 1, 0):
                raise RuntimeError("ik_llama.cpp does not take its cache back")
            _seq_add(context, 1, -1, -1, start)
            _seq_cp(context, 1, 0, -1, -1)
            _seq_rm(context, 1, -1, -1)
        self._length = length


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("task", choices=["prefill", "decode", "context", "batches", "load"])
    parser.add_argument("--contexts", type=child.numbers, default=[])
    args = parser.parse_args()
    num_sequences = max(workload.BATCH_SIZES) if args.task == "batches" else 1
    room = max([workload.ROOM_TOKENS, *args.contexts]) + 2 * workload.CONTEXT_DECODE_TOKENS
    start = time.perf_counter()
    engine = IkLlamaCppEngine(Path(args.model), args.threads, num_sequences, room)
    load_s = time.perf_counter() - start
    if args.task == "load":
        result = load_times.of_loaded(engine, args.model, room, start, load_s)
        print(json.dumps(result), flush=True)
        return
    found: object
    match args.task:
        case "prefill":
            found = workload.prefill_tokens_per_s(engine, args.repeats)
        case "decode":
            found = workload.decode_tokens_per_s(engine, args.repeats)
        case "context":
            found = workload.context_tokens_per_s(engine, args.contexts)
        case _:
            found = workload.batch_tokens_per_s(engine)
    print(json.dumps({"tokens_per_s": found}), flush=True)


if __name__ == "__main__":
    main()

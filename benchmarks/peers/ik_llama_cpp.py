"""ik_llama.cpp, llama.cpp's fastest fork for processors, through its C interface, as
ik-llama-cpp-python ships it. Runs in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import ik_llama_cpp._ctypes_api as lib

from benchmarks import child, workload
from benchmarks.peers.llama_cpp import LlamaCppEngine
from benchmarks.random_models import VOCAB_SIZE


class IkLlamaCppEngine(LlamaCppEngine):
    """With the weights repacked at load, which is its fastest way."""

    def __init__(self, model: Path, num_threads: int, num_sequences: int, context: int) -> None:
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
        params.n_ctx = 256 * num_sequences if num_sequences > 1 else context
        params.n_batch = params.n_ubatch = workload.PREFILL_TOKENS
        params.n_seq_max = num_sequences
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


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("task", choices=["prefill", "decode", "context", "batches"])
    parser.add_argument("--context", type=int, default=workload.CONTEXT_TOKENS)
    args = parser.parse_args()
    num_sequences = max(workload.BATCH_SIZES) if args.task == "batches" else 1
    room = args.context + 2 * workload.CONTEXT_DECODE_TOKENS
    engine = IkLlamaCppEngine(Path(args.model), args.threads, num_sequences, room)
    found: object
    match args.task:
        case "prefill":
            found = workload.prefill_tokens_per_s(engine)
        case "decode":
            found = workload.decode_tokens_per_s(engine)
        case "context":
            found = workload.context_tokens_per_s(engine, args.context)
        case _:
            found = workload.batch_tokens_per_s(engine)
    print(json.dumps({"tokens_per_s": found}), flush=True)


if __name__ == "__main__":
    main()

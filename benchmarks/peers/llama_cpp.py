"""llama.cpp through its C interface, as llama-cpp-python ships it. Runs in a process of its own."""

from __future__ import annotations

import ctypes
import importlib
import json
import time
from collections.abc import Container
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks import child, load_times, reference, workload
from benchmarks.process_memory import peak_bytes

_TASKS = (
    "probe", "requantize", "prefill", "decode", "memory", "accuracy", "batches", "context", "load",
)  # fmt: skip


class LlamaCppEngine:
    """Defaults of the library: float16 KV cache, flash attention where it sees fit, mapped file."""

    def __init__(
        self,
        lib: ModuleType,
        model: Path,
        num_threads: int,
        num_sequences: int = 1,
        room: int = workload.ROOM_TOKENS,
    ) -> None:
        self._lib = lib
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(model).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {model.name}")
        params = lib.llama_context_default_params()
        params.n_ctx = room
        params.n_batch = params.n_ubatch = workload.PREFILL_TOKENS
        if num_sequences > 1:
            params.n_seq_max = num_sequences
            params.n_ctx = 256 * num_sequences
        elif room > workload.ROOM_TOKENS:  # a second sequence, through which ``extend`` copies
            params.n_seq_max = 2
            params.kv_unified = True
        params.n_threads = params.n_threads_batch = num_threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp refuses the context")
        self._batch = lib.llama_batch_init(workload.PREFILL_TOKENS, 0, 1)
        self._length = 0
        self.vocab_size: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._length = 0

    def extend(self, length: int) -> None:
        """See ``workload.ContextEngine``."""
        lib, context = self._lib, self._context
        memory, num_read = lib.llama_get_memory(context), workload.CONTEXT_PROMPT_TOKENS
        lib.llama_memory_seq_rm(memory, 0, num_read, -1)
        size = lib.llama_state_seq_get_size(context, 0)
        state = (ctypes.c_uint8 * size)()
        if lib.llama_state_seq_get_data(context, state, size, 0) != size:
            raise RuntimeError("llama.cpp does not give its cache")
        for start in range(num_read, length, num_read):
            if not lib.llama_state_seq_set_data(context, state, size, 1):
                raise RuntimeError("llama.cpp does not take its cache back")
            lib.llama_memory_seq_add(memory, 1, -1, -1, start)
            lib.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            lib.llama_memory_seq_rm(memory, 1, -1, -1)
        self._length = length

    def forward(self, token_ids: list[int]) -> int:
        self._decode(token_ids, all_logits=False)
        return int(self._row(len(token_ids) - 1).argmax())

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        """See ``workload.BatchEngine``. Prompts share batches; tokens are the likeliest ones."""
        self.clear()
        rows = [(t, p, s) for s, ids in enumerate(prompts) for p, t in enumerate(ids)]
        lengths = [len(ids) for ids in prompts]
        latest = [0] * len(prompts)
        for first in range(0, len(rows), workload.PREFILL_TOKENS):
            part = rows[first : first + workload.PREFILL_TOKENS]
            ends = {i: s for i, (_, p, s) in enumerate(part) if p == lengths[s] - 1}
            self._decode_rows(part, ends)
            for row, sequence in ends.items():
                latest[sequence] = int(self._row(row).argmax())
        for step in range(num_tokens - 1):
            part = [(t, lengths[s] + step, s) for s, t in enumerate(latest)]
            self._decode_rows(part, range(len(part)))
            latest = [int(self._row(i).argmax()) for i in range(len(part))]

    def _decode_rows(self, rows: list[tuple[int, int, int]], wanted: Container[int]) -> None:
        """Tokens as (id, position, sequence); logits of the ``wanted`` rows."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token_id, position, sequence) in enumerate(rows):
            batch.token[i] = token_id
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i in wanted
        if (code := self._lib.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")

    def logits(self, token_ids: list[int]) -> reference.Float32Array:
        """After each token of a new sequence, ``[len(token_ids), vocab_size]``."""
        self.clear()
        self._decode(token_ids, all_logits=True)
        return np.stack([self._row(i) for i in range(len(token_ids))])

    def _decode(self, token_ids: list[int], all_logits: bool) -> None:
        batch, last = self._batch, len(token_ids) - 1
        batch.n_tokens = len(token_ids)
        for i, token_id in enumerate(token_ids):
            batch.token[i] = token_id
            batch.pos[i] = self._length + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == last
        if (code := self._lib.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        self._length += len(token_ids)

    def _row(self, index: int) -> reference.Float32Array:
        pointer = self._lib.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))


def silence(lib: ModuleType) -> object:
    """Keep the library's log off the screen; alive as long as what is returned."""

    def ignore(level: int, text: bytes, user_data: object) -> None:
        pass

    callback = lib.llama_log_callback(ignore)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def _requantize(lib: ModuleType, source: Path, target: Path) -> None:
    """Write the model with its matrices as Q4_0."""
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    if code != 0:
        raise RuntimeError(f"llama_model_quantize returned {code}")


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("task", choices=[*_TASKS])
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contexts", type=child.numbers, default=[])
    args = parser.parse_args()
    lib = importlib.import_module("llama_cpp")
    log = silence(lib)
    if args.task == "requantize":
        _requantize(lib, Path(args.model), args.output)
        print(json.dumps({}), flush=True)
        return
    start = time.perf_counter()
    num_sequences = max(workload.BATCH_SIZES) if args.task == "batches" else 1
    room = max([workload.ROOM_TOKENS, *args.contexts]) + 2 * workload.CONTEXT_DECODE_TOKENS
    engine = LlamaCppEngine(lib, Path(args.model), args.threads, num_sequences, room)
    load_s = time.perf_counter() - start
    result: dict[str, object] = {}
    match args.task:
        case "probe":  # a build for another machine crashes here
            engine.forward(workload.random_ids(64, engine.vocab_size, seed=0))
            result["version"] = lib.__version__
            result["system_info"] = lib.llama_print_system_info().decode()
        case "prefill":
            result["tokens_per_s"] = workload.prefill_tokens_per_s(engine, args.repeats)
        case "decode":
            result["tokens_per_s"] = workload.decode_tokens_per_s(engine, args.repeats)
        case "context":
            result["tokens_per_s"] = workload.context_tokens_per_s(engine, args.contexts)
        case "batches":
            result["tokens_per_s"] = workload.batch_tokens_per_s(engine)
        case "memory":
            workload.fill_context(engine)
            result |= {"load_s": load_s, "peak_bytes": peak_bytes()}
        case "load":
            result |= load_times.of_loaded(engine, args.model, room, start, load_s)
        case "accuracy":
            result |= reference.compare(args.reference, engine.logits)
    del log
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

"""OpenVINO GenAI with its continuous batching. Runs in a process of its own.

It knows no GLM in GGUF, so it is given a llama of the same shape.
"""

from __future__ import annotations

import json
import os

import numpy as np

from benchmarks import child, workload

# The library takes these for AVX2; without them it picks its own types.
_AVX2 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


class OpenVINOEngine:
    """See ``workload.BatchEngine``."""

    def __init__(self, model: str, num_threads: int, properties: dict[str, str]) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._genai = openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = max(workload.BATCH_SIZES)
        scheduler.max_num_batched_tokens = workload.PREFILL_TOKENS
        scheduler.cache_size = 1  # GB
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.LLMPipeline(
            model,
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=num_threads,
            **properties,
        )
        from benchmarks.random_models import VOCAB_SIZE

        self.vocab_size = VOCAB_SIZE

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        ids = np.array(prompts, np.int64)
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        tensor = self._openvino.Tensor
        self._pipeline.generate(
            self._genai.TokenizedInputs(tensor(ids), tensor(np.ones_like(ids))), config
        )


def main() -> None:
    parser = child.parser(__doc__)
    parser.add_argument("task", choices=["batches"])
    parser.add_argument("--avx2", action="store_true", help="the instructions that Glimmer uses")
    args = parser.parse_args()
    if args.avx2:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"  # read when the library is loaded
    engine = OpenVINOEngine(args.model, args.threads, _AVX2 if args.avx2 else {})
    print(json.dumps({"tokens_per_s": workload.batch_tokens_per_s(engine)}), flush=True)


if __name__ == "__main__":
    main()

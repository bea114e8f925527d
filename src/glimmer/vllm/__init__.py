"""Networks that vLLM runs, on this machine or on others: token ids go there, token ids come back.

Text stays here: chat template, thoughts, tool calls, stop strings. vLLM itself is never imported;
it is spoken to over HTTP (``/v1/completions`` with token ids), by the names of vLLM 0.32.
"""

from glimmer.vllm.backend import Backend
from glimmer.vllm.engine import RemoteEngine
from glimmer.vllm.folder import check_model, check_runs, model_folder
from glimmer.vllm.process import VllmProcess, find_program

__all__ = [
    "Backend",
    "RemoteEngine",
    "VllmProcess",
    "check_model",
    "check_runs",
    "find_program",
    "model_folder",
]

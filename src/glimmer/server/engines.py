"""Opens a model on the engine that its settings name."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from glimmer.adapter_pool import AdapterPool, check_adapters
from glimmer.async_llm import AsyncLLM
from glimmer.errors import EngineUnavailableError, InvalidParameterError
from glimmer.loader import LoadedModel, load, load_text
from glimmer.model_memory import memory_of
from glimmer.server.config import ModelConfig
from glimmer.session import Session, parse_bytes
from glimmer.text_model import TextModel
from glimmer.vllm import (
    Backend,
    RemoteEngine,
    VllmProcess,
    check_model,
    check_runs,
    find_program,
    model_folder,
)
from glimmer.vllm.process import check_args

_LOG = logging.getLogger("glimmer.server")
_BACKENDS_S = 30.0
"""A server that runs already answers at once; it may be about to start."""
# Beside what the user gives: how forms are followed, what usage tells, that priorities count.
_DEFAULT_ARGS = (
    "--structured-outputs-config.backend", "guidance",
    "--enable-prompt-tokens-details",
    "--scheduling-policy", "priority",
)  # fmt: skip
_DTYPES = ("float32", "bfloat16", "float16")


def check(config: ModelConfig) -> None:
    """Tell a slip of the pen before anything is loaded or started.

    Raises:
        GlimmerError: the model, its engine or the device is not there, the engine cannot run the
            model, or an adapter does not fit.
    """
    if config.engine == "torch":
        _runner().find_device(config.device)
    if config.engine != "vllm":
        # A model may be loaded hours later, when somebody asks for it.
        check_adapters(config.source, config.adapters.values(), family=config.family)
        return
    if config.backends:
        model = load_text(config.source, family=config.family)
        check_runs(model.own_family, model.architecture)
        _backends(config, os.environ)
    else:
        check_model(config.source, config.family)
        check_args(config.engine_args)
        find_program()


def is_in_main_memory(config: ModelConfig) -> bool:
    """Whether weights and KV cache are in this process's part of the machine's memory, and not in
    another process or on a GPU."""
    if config.engine == "torch":
        found: bool = _runner().find_device(config.device).type != "cuda"
        return found
    return config.engine != "vllm"


def weights_bytes(config: ModelConfig) -> int:
    """Of main memory, as far as this process takes it."""
    if not is_in_main_memory(config):
        return 0
    if config.engine == "torch":
        expected: int = _runner().expected_bytes(
            config.source, device=config.device, dtype=config.weights, family=config.family
        )
        return expected
    return memory_of(config.source, weights=config.weights, family=config.family).plan.weights


def open_llm(
    config: ModelConfig,
    kv_memory: int | str | None,
    is_closing: Callable[[], bool] = lambda: False,
) -> AsyncLLM:
    """Load it, or connect to who runs it, which ends when ``is_closing``.

    Raises: as ``load``, ``AsyncLLM`` and ``RemoteEngine.connect``.
    """
    if config.engine == "vllm":
        return _open_vllm(config, is_closing)
    return AsyncLLM(
        _load(config),
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len,
        kv_cache=config.kv,
        kv_memory=kv_memory,
        max_waiting=config.max_waiting,
        adapters=config.adapters,
    )


def _runner() -> Any:
    """By name: nobody else imports torch."""
    return importlib.import_module("glimmer.hf.runner")


def _load(config: ModelConfig) -> LoadedModel:
    if config.engine == "torch":
        runner = _runner()
        if config.threads is not None:
            runner.set_threads(config.threads)
        loaded: LoadedModel = runner.load(
            config.source, device=config.device, dtype=config.weights, family=config.family
        )
        return loaded
    return load(
        config.source,
        weights=config.weights,
        family=config.family,
        num_threads=config.threads,
        activations=config.activations,
    )


def _open_vllm(config: ModelConfig, is_closing: Callable[[], bool]) -> AsyncLLM:
    model = load_text(config.source, family=config.family)
    check_runs(model.own_family, model.architecture)
    limit = model.architecture.max_position
    if config.max_model_len is not None and config.max_model_len > limit:
        raise InvalidParameterError(
            f"max_model_len must be between 2 and the {limit} tokens that {model.name} was built "
            f"for, but it is {config.max_model_len}."
        )
    if config.backends:
        engine = _engine(config, model, _backends(config, os.environ))
        return _connected(model, engine, _BACKENDS_S, is_closing)
    process = VllmProcess(
        find_program(), model_folder(config.source, config.family), config.name, _args(config)
    )
    backend = Backend("http://vllm", process.key, process.socket)
    engine = _engine(config, model, [backend], on_close=process.stop)
    process.start()
    # Large weights take their time, and the log shows how far it is.
    try:
        return _connected(
            model,
            engine,
            math.inf,
            lambda: is_closing() or process.has_failed(),
            ready=process.ready,
        )
    except EngineUnavailableError as error:
        raise (process.failure() if process.has_failed() else error) from error


def _connected(
    model: TextModel,
    engine: RemoteEngine,
    timeout_s: float,
    give_up: Callable[[], bool],
    ready: Callable[[], None] = lambda: None,
) -> AsyncLLM:
    """``ready`` is called when a backend has answered; what it raises ends the engine."""
    try:
        engine.connect(timeout_s, give_up=give_up)
        ready()
    except BaseException:
        engine.close()
        raise
    session = Session(model, engine, engine.max_model_len, AdapterPool(model), plain_layout=True)
    return AsyncLLM.over(session)


def _engine(
    config: ModelConfig,
    model: TextModel,
    backends: list[Backend],
    on_close: Callable[[], None] = lambda: None,
) -> RemoteEngine:
    architecture = model.architecture
    return RemoteEngine(
        backends,
        config.name,
        vocab_size=architecture.vocab_size,
        max_model_len=config.max_model_len or architecture.max_position,
        max_unfinished=config.max_num_seqs + config.max_waiting,
        on_close=on_close,
    )


def _backends(config: ModelConfig, environ: Mapping[str, str]) -> list[Backend]:
    """Raises InvalidParameterError for what is no address, or one that stands there twice."""
    backends = [Backend(b.url, environ.get(b.key_env) or None) for b in config.backends]
    names = [backend.name for backend in backends]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidParameterError(
            f"{config.name}: the backend {twice[0]} is named twice. Name each server once."
        )
    return backends


def _args(config: ModelConfig) -> list[str]:
    """Of `vllm serve`: ours, those that settings of ours stand for, and the user's, which win."""
    args = list(_DEFAULT_ARGS)
    if config.weights in _DTYPES:
        args += ["--dtype", config.weights]
    if config.max_model_len is not None:
        args += ["--max-model-len", str(config.max_model_len)]
    if "max_num_seqs" in config.model_fields_set:
        args += ["--max-num-seqs", str(config.max_num_seqs)]
    if config.kv_memory is not None:
        args += ["--kv-cache-memory-bytes", str(parse_bytes(config.kv_memory))]
    return [*args, *config.engine_args]

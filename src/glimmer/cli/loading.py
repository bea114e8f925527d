"""From a command's options to a model ready to answer, with a sign of life meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glimmer.cli import terminal
from glimmer.cli.options import LoadOptions, named_adapters

if TYPE_CHECKING:
    from glimmer import LLM, LoadedModel


def open_llm(model: str, options: LoadOptions) -> LLM:
    """Load ``model`` for one conversation. Raises what ``glimmer.load`` and ``glimmer.LLM`` do."""
    import glimmer
    from glimmer import adapter_pool

    adapters = named_adapters(options.adapter or [])
    with terminal.messages().status(f"Loading {terminal.printable(model)} ..."):
        adapter_pool.check_adapters(model, adapters.values(), family=options.family)
        loaded = _load_torch(model, options) if options.engine == "torch" else _load(model, options)
        return glimmer.LLM(
            loaded,
            max_num_seqs=1,
            max_model_len=options.max_model_len,
            kv_cache=options.kv,
            kv_memory=options.kv_memory,
            adapters=adapters,
        )


def _load(model: str, options: LoadOptions) -> LoadedModel:
    import glimmer
    from glimmer.errors import UsageError

    if options.device not in ("auto", "cpu"):
        raise UsageError(
            f"The native engine runs on the processor and not on {options.device}: "
            "add --engine torch."
        )
    return glimmer.load(
        model,
        weights=options.weights,
        activations=options.activations,
        family=options.family,
        num_threads=options.threads,
    )


def _load_torch(model: str, options: LoadOptions) -> LoadedModel:
    from glimmer.errors import UsageError

    if options.activations != "auto":
        raise UsageError(
            "--activations is the native engine's: torch rounds no inputs of its weights but as "
            "bitsandbytes does. Leave it out."
        )
    from glimmer.hf import runner

    if options.threads is not None:
        runner.set_threads(options.threads)
    return runner.load(model, device=options.device, dtype=options.weights, family=options.family)


def chosen_adapter(llm: LLM) -> str | None:
    """The name of the one that answers first; None for none."""
    return next(iter(llm.adapters), None)

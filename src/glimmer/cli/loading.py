"""From a command's options to a model ready to answer, with a sign of life meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glimmer.cli import terminal
from glimmer.cli.options import LoadOptions

if TYPE_CHECKING:
    from glimmer import LLM


def open_llm(model: str, options: LoadOptions) -> LLM:
    """Load ``model`` for one conversation. Raises what ``glimmer.load`` and ``glimmer.LLM`` do."""
    import glimmer

    with terminal.messages().status(f"Loading {terminal.printable(model)} ..."):
        loaded = glimmer.load(
            model,
            weights=options.weights,
            activations=options.activations,
            family=options.family,
            num_threads=options.threads,
        )
        return glimmer.LLM(
            loaded,
            max_num_seqs=1,
            max_model_len=options.max_model_len,
            kv_cache=options.kv,
            kv_memory=options.kv_memory,
        )

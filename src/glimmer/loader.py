"""A release or a path becomes a loaded model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from glimmer.adapters import Adapter, read_adapter
from glimmer.architecture import Architecture
from glimmer.catalogue import find_file, find_release
from glimmer.checkpoints import (
    Checkpoint,
    ConfigCheckpoint,
    PackedCheckpoint,
    open_checkpoint,
)
from glimmer.errors import InvalidParameterError, OutOfMemoryError
from glimmer.families import Chat, Family, Release
from glimmer.model_source import ModelSource, find_architecture, find_family
from glimmer.native import (
    BLOCK_SIZE,
    NativeModel,
    StepInput,
    available_memory,
    trim_heap,
)
from glimmer.native.model import Activations, Float32Array, KVDType
from glimmer.native.runner import Runner
from glimmer.packed_source import open_source
from glimmer.text_model import TextModel
from glimmer.tokenizers import Tokenizer

Weights = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
TARGETS: Mapping[str, str | None] = {
    "auto": None,
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "int8": "q8_0",
    "int4": "q4_0",
}
# Below this many parameters a network feels the rounding of int8 activations (a fifth of a logit on
# the demo, docs/benchmarks.md), and its prefill is quick in any case.
_SMALL_MODEL_PARAMETERS = 1_000_000_000
# Hidden states come of all layers: a chunk of 64 tokens of a 9B model takes 43 MB.
_EMBED_CHUNK = 64


class LoadedModel(TextModel):
    """A model that is ready to run: network, tokenizer, chat template. Made by ``load``.

    It holds no open file: the checkpoint may be moved or deleted. A packed folder stays mapped, so
    its files may be moved, deleted and replaced, but not overwritten in place or shortened: that
    would end the process.
    """

    def __init__(
        self,
        path: Path,
        own_name: str,
        family: Family,
        architecture: Architecture,
        runner: Runner,
        tokenizer: Tokenizer | None,
        chat: Chat | None,
        weights: Weights,
        release: Release | None,
    ) -> None:
        super().__init__(path, own_name, family, architecture, tokenizer, chat, release)
        self.runner = runner
        self.weights = weights

    @property
    def native(self) -> NativeModel:
        """The native core that runs it. Raises InvalidParameterError where another engine does."""
        if not isinstance(self.runner, NativeModel):
            raise InvalidParameterError(
                "This needs the native engine, but the model was loaded for another one."
            )
        return self.runner

    @property
    def weights_bytes(self) -> int:
        return self.runner.weights_bytes

    @property
    def default_kv_dtype(self) -> KVDType:
        """float16, but float32 where float32 arithmetic was asked for."""
        return "float32" if self.weights == "float32" else "float16"

    def read_adapter(self, folder: str | os.PathLike[str]) -> Adapter:
        """An adapter for this model; raises as ``glimmer.adapters.read_adapter``."""
        return read_adapter(folder, self._family, self.architecture)

    def logits(self, token_ids: Sequence[int]) -> Float32Array:
        """Logits after each token of one sequence, float32 ``[len(token_ids), vocab_size]``.

        Raises:
            InvalidParameterError: no token, or an id outside the vocabulary.
        """
        return self._run(token_ids, with_hidden=False)[0]

    def trace(self, token_ids: Sequence[int]) -> tuple[Float32Array, Float32Array]:
        """Logits, and the residual stream of each token: the embedding and what leaves each layer,
        before the final norm; float32 ``[num_layers + 1, len(token_ids), hidden_size]``.

        Raises as ``logits``.
        """
        logits, hidden = self._run(token_ids, with_hidden=True)
        assert hidden is not None
        return logits, hidden

    def embed(self, token_ids: Sequence[int]) -> Float32Array:
        """One vector for a text: the last layer's residual stream, each token's scaled to a root
        mean square of 1 as the final norm does, the mean of all tokens, scaled to length 1;
        float32 ``[hidden_size]``.

        Raises as ``logits``.
        """
        total = np.zeros(self.architecture.hidden_size)
        for _, hidden in self._chunks(token_ids, _EMBED_CHUNK, with_logits=False, with_hidden=True):
            assert hidden is not None
            states = hidden[-1].astype(np.float64)
            scale = np.sqrt(np.mean(np.square(states), axis=1, keepdims=True))
            total += (states / np.maximum(scale, 1e-12)).sum(axis=0)
        length = float(np.linalg.norm(total))
        return (total / max(length, 1e-12)).astype(np.float32)

    def _run(
        self, token_ids: Sequence[int], with_hidden: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        chunks = list(self._chunks(token_ids, 256, with_logits=True, with_hidden=with_hidden))
        logits = np.concatenate([chunk for chunk, _ in chunks if chunk is not None])
        hidden = [chunk for _, chunk in chunks if chunk is not None]
        return logits, np.concatenate(hidden, axis=1) if with_hidden else None

    def _chunks(
        self, token_ids: Sequence[int], max_length: int, *, with_logits: bool, with_hidden: bool
    ) -> Iterator[tuple[Float32Array | None, Float32Array | None]]:
        """Logits and hidden states of all tokens, chunk by chunk; None where not asked for."""
        ids = np.asarray(token_ids, np.int32)
        if ids.ndim != 1 or len(ids) == 0:
            raise InvalidParameterError(
                f"logits needs a list of at least one token id, but it got {token_ids!r}."
            )
        num_blocks = -(-len(ids) // BLOCK_SIZE)
        cache = self.runner.new_cache(num_blocks, self.default_kv_dtype)
        blocks = np.arange(num_blocks, dtype=np.int32)[None]
        layout = self.architecture.layout(token_ids)
        positions, block_positions = (
            None if row is None else np.array(row, np.int32)
            for row in (layout.positions, layout.block_positions)
        )
        assert positions is not None
        chunk_length = len(ids) if self.architecture.needs_whole_prompts else max_length
        for start in range(0, len(ids), chunk_length):
            chunk = slice(start, min(start + chunk_length, len(ids)))
            length = chunk.stop - start
            step = StepInput(
                token_ids=ids[chunk],
                query_lengths=np.array([length], np.int32),
                kv_lengths=np.array([chunk.stop], np.int32),
                block_tables=blocks,
                logit_rows=np.arange(length, dtype=np.int32),
                positions=positions[chunk],
                block_positions=None if block_positions is None else block_positions[chunk],
                context_lengths=np.array([layout.context_length], np.int32)
                if self.architecture.mask == "prefix"
                else None,
                return_logits=with_logits,
                return_hidden=with_hidden,
            )
            result = self.runner.step(cache, step)
            yield result.logits, result.hidden


def load(
    model: str | os.PathLike[str],
    *,
    weights: Weights = "auto",
    family: str | None = None,
    num_threads: int | None = None,
    activations: Activations | Literal["auto"] = "auto",
) -> LoadedModel:
    """Load a checkpoint from its path, or a release by its name. A packed folder is mapped.

    ``weights="auto"`` keeps every matrix as it is stored; another value converts all of them.
    ``activations`` is the form in which int4 weights meet their inputs; "auto" takes "int16", which
    has no rounding to speak of, below a billion parameters and "int8", the fastest, above.

    Raises:
        ModelNotFoundError: no such path or release.
        CheckpointError: the files are at fault; the message says how.
        OutOfMemoryError: the weights do not fit into what is free.
        InvalidParameterError: a value that is not allowed.
    """
    if weights not in get_args(Weights):
        raise InvalidParameterError(
            f"weights must be one of {', '.join(get_args(Weights))}, but it is {weights!r}."
        )
    path, release = find_file(model)
    with open_checkpoint(path) as checkpoint:
        source = open_source(checkpoint, family)
        found, architecture = source.family, source.architecture
        release = release or release_of(checkpoint)
        if activations == "auto":
            small = architecture.num_parameters < _SMALL_MODEL_PARAMETERS
            activations = "int16" if small else "int8"
        native = NativeModel(architecture, num_threads, activations=activations)
        _check_memory(source, native, TARGETS[weights])
        # Before the weights: what building it takes for a moment is then free again for them.
        facts = described(checkpoint, found.name)
        checkpoint.release_metadata()
        trim_heap()
        for name in load_order(source.shapes):
            source.load_into(native, name, TARGETS[weights])
    native.finish()
    return LoadedModel(
        path,
        facts.own_name,
        found,
        architecture,
        native,
        facts.tokenizer,
        facts.chat,
        weights,
        release,
    )


def load_text(model: str | os.PathLike[str], *, family: str | None = None) -> TextModel:
    """A model without its weights, for a network that runs elsewhere. A folder needs none then.

    Raises: as ``load``.
    """
    path, release = find_file(model)
    with _open_for_text(path) as checkpoint:
        facts = described(checkpoint, family)
        return TextModel(
            path,
            facts.own_name,
            facts.family,
            facts.architecture,
            facts.tokenizer,
            facts.chat,
            release or release_of(checkpoint),
        )


def _open_for_text(path: Path) -> Checkpoint:
    has_weights = not path.is_dir() or any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    return open_checkpoint(path) if has_weights else ConfigCheckpoint(path)


@dataclass(frozen=True, slots=True)
class Described:
    """All of a checkpoint but its weights."""

    own_name: str
    family: Family
    architecture: Architecture
    tokenizer: Tokenizer | None
    chat: Chat | None


def described(checkpoint: Checkpoint, family: str | None) -> Described:
    """Raises UnknownFamilyError, TokenizerError, CheckpointError."""
    found = find_family(checkpoint, family)
    tokenizer = found.tokenizer(checkpoint) if found.has_tokenizer(checkpoint) else None
    return Described(
        model_name(checkpoint),
        found,
        find_architecture(checkpoint, found),
        tokenizer,
        found.chat(checkpoint, tokenizer) if tokenizer is not None else None,
    )


def model_name(checkpoint: Checkpoint) -> str:
    name = checkpoint.metadata.get("general.name")
    return name if isinstance(name, str) and name else Path(checkpoint.path).name


def release_of(checkpoint: Checkpoint) -> Release | None:
    """The release that a packed folder was made of; None where it is none, or not a packed one."""
    if isinstance(checkpoint, PackedCheckpoint) and checkpoint.made_from is not None:
        return find_release(checkpoint.made_from)
    return None


def load_order(names: Iterable[str]) -> list[str]:
    """The vocabulary's matrices first: a weight's source lies beside it while it is packed, and
    memory is fullest at the end."""
    return sorted(names, key=lambda name: name not in ("embedding.weight", "head.weight"))


def _check_memory(source: ModelSource, native: NativeModel, target: str | None) -> None:
    needed = source.loaded_bytes(native, target)
    available = available_memory()
    if available is not None and needed > available:
        raise OutOfMemoryError(
            f"The weights of {source.checkpoint.path} take {needed / 2**30:.1f} GiB, but "
            f"{available / 2**30:.1f} GiB are free. Close other programs, take a smaller model, or "
            'convert at load with weights="int8" or "int4".'
        )

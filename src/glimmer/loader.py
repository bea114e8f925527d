"""A release or a path becomes a loaded model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from glimmer.architecture import Architecture
from glimmer.catalogue import find_file
from glimmer.chat import ChatTemplate
from glimmer.checkpoints import Checkpoint, open_checkpoint
from glimmer.errors import (
    InvalidParameterError,
    MalformedCheckpointError,
    OutOfMemoryError,
    TokenizerError,
    UnsupportedTensorTypeError,
)
from glimmer.families import Family, Release, recognise
from glimmer.native import (
    BLOCK_SIZE,
    KVCache,
    NativeModel,
    StepInput,
    available_memory,
    trim_heap,
)
from glimmer.native.model import Activations, Float32Array, KVDType
from glimmer.quantization import SCHEMES
from glimmer.tokenizers import Tokenizer

Weights = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
_TARGETS: Mapping[str, str | None] = {
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


class LoadedModel:
    """A model that is ready to run: network, tokenizer, chat template. Made by ``load``.

    It holds no file: the checkpoint may be moved or deleted.
    """

    def __init__(
        self,
        path: Path,
        own_name: str,
        family: Family,
        architecture: Architecture,
        native: NativeModel,
        tokenizer: Tokenizer | None,
        weights: Weights,
        release: Release | None,
    ) -> None:
        self.path = path
        self.architecture = architecture
        self.native = native
        self.weights = weights
        self.release = release
        self._own_name = own_name
        self._family = family
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        """What to call the model: the release's title, else the file's own name, else its path."""
        if self.release is not None:
            return f"{self.release.title} ({self.release.name})"
        return self._own_name

    @property
    def family(self) -> str:
        return self._family.name

    @property
    def notice(self) -> str | None:
        """One line that a user must know before the first answer."""
        return self.release.notice if self.release else None

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The values of SamplingParams that the release asks for."""
        return self.release.sampling if self.release else {}

    @property
    def weights_bytes(self) -> int:
        return self.native.weights_bytes

    @property
    def default_kv_dtype(self) -> KVDType:
        """float16, but float32 where float32 arithmetic was asked for."""
        return "float32" if self.weights == "float32" else "float16"

    @property
    def has_tokenizer(self) -> bool:
        """Without one, the model runs for token ids alone."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError if there is none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self.path} holds no tokenizer, so it runs for token ids alone: give lists of "
                "ids, or a file that was converted with its tokenizer."
            )
        return self._tokenizer

    @cached_property
    def chat_template(self) -> ChatTemplate:
        return self._family.chat_template(self.tokenizer)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return tuple(self._family.stop_token_ids(self.tokenizer))

    def logits(self, token_ids: Sequence[int]) -> Float32Array:
        """Logits after each token of one sequence, float32 ``[len(token_ids), vocab_size]``.

        Raises:
            InvalidParameterError: no token, or an id outside the vocabulary.
        """
        ids = np.asarray(token_ids, np.int32)
        if ids.ndim != 1 or len(ids) == 0:
            raise InvalidParameterError(
                f"logits needs a list of at least one token id, but it got {token_ids!r}."
            )
        num_blocks = -(-len(ids) // BLOCK_SIZE)
        cache = KVCache(self.native, num_blocks, self.default_kv_dtype)
        blocks = np.arange(num_blocks, dtype=np.int32)[None]
        parts = []
        for start in range(0, len(ids), 256):
            chunk = ids[start : start + 256]
            step = StepInput(
                token_ids=chunk,
                query_lengths=np.array([len(chunk)], np.int32),
                kv_lengths=np.array([start + len(chunk)], np.int32),
                block_tables=blocks,
                logit_rows=np.arange(len(chunk), dtype=np.int32),
                return_logits=True,
            )
            logits = self.native.step(cache, step).logits
            assert logits is not None
            parts.append(logits)
        return np.concatenate(parts)


def load(
    model: str | os.PathLike[str],
    *,
    weights: Weights = "auto",
    family: str | None = None,
    num_threads: int | None = None,
    activations: Activations | Literal["auto"] = "auto",
) -> LoadedModel:
    """Load a checkpoint from its path, or a release by its name.

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
        found = recognise(checkpoint, family)
        architecture = found.architecture(checkpoint)
        names = weight_names(checkpoint, found, architecture)
        _check_memory(checkpoint, names, _TARGETS[weights])
        if activations == "auto":
            small = architecture.num_parameters < _SMALL_MODEL_PARAMETERS
            activations = "int16" if small else "int8"
        native = NativeModel(architecture, num_threads, activations=activations)
        own_name = model_name(checkpoint)
        # Before the weights: what building it takes for a moment is then free again for them.
        tokenizer = found.tokenizer(checkpoint) if found.has_tokenizer(checkpoint) else None
        checkpoint.release_metadata()
        trim_heap()
        for canonical, name in names.items():
            tensor = checkpoint.tensors[name]
            target = _TARGETS[weights] if len(tensor.shape) == 2 else None
            native.load(canonical, tensor.dtype, tensor.shape, checkpoint.read(name), target)
            checkpoint.release(name)
    native.finish()
    return LoadedModel(path, own_name, found, architecture, native, tokenizer, weights, release)


def model_name(checkpoint: Checkpoint) -> str:
    name = checkpoint.metadata.get("general.name")
    return name if isinstance(name, str) and name else Path(checkpoint.path).name


def weight_names(
    checkpoint: Checkpoint, family: Family, architecture: Architecture
) -> Mapping[str, str]:
    """Canonical weight name -> name in the file, after a check of presence, shape and type.

    Raises:
        MalformedCheckpointError: a weight is missing or has another shape.
        UnsupportedTensorTypeError: a weight is stored in a type that the engine does not run.
    """
    # Said before the layers are counted out: a damaged number may claim billions of them.
    if architecture.num_layers > len(checkpoint.tensors):
        raise MalformedCheckpointError(
            f"{checkpoint.path} claims {architecture.num_layers} layers, but it holds "
            f"{len(checkpoint.tensors)} tensors in all. The file is damaged or incomplete: "
            "download or convert it again."
        )
    names = {}
    for canonical, shape in architecture.weight_shapes().items():
        name = family.weight_map.file_name(canonical)
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            raise MalformedCheckpointError(
                f"{checkpoint.path} has no tensor {name!r} ({canonical}), which a {family.name} "
                f"model of {architecture.num_layers} layers needs. The file is incomplete: "
                "download or convert it again."
            )
        if tensor.shape != shape:
            raise MalformedCheckpointError(
                f"{checkpoint.path}: tensor {name!r} has shape {list(tensor.shape)}, but the "
                f"network in its metadata needs {list(shape)}."
            )
        if tensor.dtype not in SCHEMES:
            raise UnsupportedTensorTypeError(
                f"{checkpoint.path}: tensor {name!r} is stored as {tensor.dtype}, which this "
                f"version does not run; supported: {', '.join(SCHEMES)}. Use a file quantised to "
                "one of these."
            )
        names[canonical] = name
    return names


def _check_memory(checkpoint: Checkpoint, names: Mapping[str, str], target: str | None) -> None:
    needed = 0
    for name in names.values():
        tensor = checkpoint.tensors[name]
        scheme = SCHEMES[target if target and len(tensor.shape) == 2 else tensor.dtype]
        needed += scheme.size_bytes(tensor.shape)
    available = available_memory()
    if available is not None and needed > available:
        raise OutOfMemoryError(
            f"The weights of {checkpoint.path} take {needed / 2**30:.1f} GiB, but "
            f"{available / 2**30:.1f} GiB are free. Close other programs, take a smaller model, or "
            'convert at load with weights="int8" or "int4".'
        )

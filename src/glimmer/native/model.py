"""The C++ core as typed Python: arrays in, arrays out. Knows no file and no text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from glimmer.architecture import Architecture, Experts
from glimmer.errors import InvalidParameterError, UnsupportedArchitectureError
from glimmer.native import _core
from glimmer.native.cpu import available_memory, cpu_of_each_core, physical_cores

if TYPE_CHECKING:
    from glimmer.native.adapter_weights import KVPrefix, Lora

BLOCK_SIZE: int = _core.BLOCK_SIZE
"""Tokens per block of the KV cache."""
PACKED_ALIGNMENT: int = _core.PACKED_ALIGNMENT
"""Bytes, of a packed weight in memory."""
PACKED_LAYOUT: int = _core.PACKED_LAYOUT
"""Version of what ``NativeModel.pack`` makes."""
MAX_THREADS = 1024

Activations = Literal["int8", "int16"]
KVDType = Literal["float16", "float32", "int8"]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


def instruction_sets() -> list[str]:
    """Names that GLIMMER_ISA may take on this machine, the plainest first."""
    return _core.instruction_sets()


def instruction_set(name: str | None = None) -> str:
    """The instruction set that runs: ``name``, else GLIMMER_ISA, else the best.

    Raises:
        UnknownInstructionSetError: the name is unknown, or this processor lacks it.
    """
    return _core.find_instruction_set(os.environ.get("GLIMMER_ISA", "") if name is None else name)


def trim_heap() -> None:
    """Give freed memory back to the operating system, where the allocator can."""
    _core.trim_heap()


def kv_block_bytes(architecture: Architecture, dtype: KVDType = "float16") -> int:
    """Bytes of one KV block: ``BLOCK_SIZE`` tokens of all layers."""
    return _core.kv_block_bytes(to_core(architecture), getattr(_core.KVDType, dtype))


def _int32(name: str, value: Any) -> Any:
    """The value, unless it is an integer that no network has and the core could not hold."""
    if isinstance(value, int) and not 0 <= value < 2**31:
        raise UnsupportedArchitectureError(
            f"The network's {name} must be below {2**31}, but it is {value}."
        )
    return value


def check_architecture(architecture: Architecture) -> None:
    """Raise UnsupportedArchitectureError, naming the choice, if the core does not run it."""
    to_core(architecture).check()


def to_core(architecture: Architecture) -> _core.Architecture:
    core, rope = _core.Architecture(), architecture.rope
    for name in (
        "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
        "intermediate_size", "norm_eps", "residual_scale", "qkv_bias", "attention_out_bias",
        "mlp_bias", "qk_norm", "prefix_length", "tied_head",
    ):  # fmt: skip
        setattr(core, name, _int32(name, getattr(architecture, name)))
    for name, kind in (
        ("norm", _core.Norm),
        ("norm_place", _core.NormPlace),
        ("residual", _core.Residual),
        ("mask", _core.Mask),
        ("mlp", _core.Mlp),
    ):
        setattr(core, name, getattr(kind, getattr(architecture, name)))
    core.rope_dims = _int32("rope dims", rope.dims)
    core.rope_base = rope.base
    core.rope_linear_scale = rope.linear_scale
    core.rope_pairing = getattr(_core.RopePairing, rope.pairing)
    dimensions = _core.RopeDimensions
    core.rope_positions = dimensions.two if rope.positions == "2d" else dimensions.one
    core.rope_half_frequencies = rope.frequency_dtype == "float16"
    if architecture.experts is not None:
        core.experts = _experts_to_core(architecture.experts)
    return core


def _experts_to_core(experts: Experts) -> _core.Experts:
    core = _core.Experts()
    for name in (
        "num_experts", "num_experts_per_token", "num_shared_experts", "intermediate_size",
        "num_dense_layers", "num_groups", "num_groups_per_token", "normalize_weights",
        "routed_scale",
    ):  # fmt: skip
        setattr(core, name, _int32(f"experts' {name}", getattr(experts, name)))
    return core


@dataclass(frozen=True, slots=True, eq=False)
class SamplingInput:
    """How each logit row of a step chooses its token; arrays of one value per row ``[L]``.

    ``history`` holds the tokens of all rows' sequences, row ``i`` from ``history_offsets[i]`` to
    ``history_offsets[i + 1]``, the first ``prompt_lengths[i]`` of them the prompt; it may be empty
    where no penalty is set. ``bias_*`` likewise. ``position`` is the index of the token to be drawn
    in its sequence: with the seed it gives the random number.
    """

    temperature: Float32Array
    top_k: Int32Array
    top_p: Float32Array
    min_p: Float32Array
    seed: npt.NDArray[np.uint64]
    position: npt.NDArray[np.int64]
    repetition_penalty: Float32Array
    presence_penalty: Float32Array
    frequency_penalty: Float32Array
    history: Int32Array
    history_offsets: Int32Array
    prompt_lengths: Int32Array
    bias_ids: Int32Array
    bias_values: Float32Array
    bias_offsets: Int32Array
    num_logprobs: int = -1
    """Likeliest tokens to report for every row; 0 for the chosen token's alone, -1 for none."""
    allowed: Int32Array | None = None
    """``[masks, ceil(vocab_size / 32)]`` a bit per token that may be chosen, the lowest first."""
    allowed_rows: Int32Array | None = None
    """The mask of each row, -1 for a row that may choose any token; needed with ``allowed``."""

    def check(self, num_rows: int, vocab_size: int) -> None:
        """Raise InvalidParameterError unless the arrays fit ``num_rows`` and each other."""
        per_row = (
            "temperature", "top_k", "top_p", "min_p", "seed", "position", "repetition_penalty",
            "presence_penalty", "frequency_penalty", "prompt_lengths",
        )  # fmt: skip
        for name in per_row:
            _check_length(name, getattr(self, name), num_rows)
        for name, flat in (("history_offsets", self.history), ("bias_offsets", self.bias_ids)):
            offsets = getattr(self, name)
            _check_length(name, offsets, num_rows + 1)
            if offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
                raise InvalidParameterError(
                    f"{name} must ascend from 0 to {len(flat)}, but it is {offsets.tolist()}."
                )
        _check_length("bias_values", self.bias_values, len(self.bias_ids))
        lengths = np.diff(self.history_offsets)
        if ((self.prompt_lengths < 0) | (self.prompt_lengths > lengths)).any():
            raise InvalidParameterError(
                f"prompt_lengths {self.prompt_lengths.tolist()} must lie between 0 and the lengths "
                f"of the histories, {lengths.tolist()}."
            )
        masks, mask_rows = self.masks(num_rows, vocab_size)
        words = -(-vocab_size // 32)
        if masks.ndim != 2 or masks.shape[1] != words:
            raise InvalidParameterError(
                f"allowed must have shape [masks, {words}], but it has {list(masks.shape)}."
            )
        _check_length("allowed_rows", mask_rows, num_rows)
        if (mask_rows >= len(masks)).any():
            raise InvalidParameterError(
                f"allowed_rows must lie below the {len(masks)} masks given, but it is "
                f"{mask_rows.tolist()}."
            )

    def masks(self, num_rows: int, vocab_size: int) -> tuple[Int32Array, Int32Array]:
        """``allowed`` and ``allowed_rows``; where they are None, arrays that allow all."""
        if self.allowed is not None and self.allowed_rows is not None:
            return self.allowed, self.allowed_rows
        return np.empty((0, -(-vocab_size // 32)), np.int32), np.full(num_rows, -1, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class StepInput:
    """A flat ragged batch: the new tokens of S sequences, one sequence after the other."""

    token_ids: Int32Array
    """``[T]``"""
    query_lengths: Int32Array
    """``[S]`` new tokens of each sequence, together T."""
    kv_lengths: Int32Array
    """``[S]`` tokens of each sequence in the cache after this step."""
    block_tables: Int32Array
    """``[S, max_blocks]`` KV blocks of each sequence in order; beyond its length unread."""
    logit_rows: Int32Array
    """``[L]`` ascending indices into the T tokens: those whose next token is wanted."""
    positions: Int32Array | None = None
    """``[T]`` rotary positions; by default each token's index in its sequence."""
    block_positions: Int32Array | None = None
    """``[T]`` second rotary positions; needed if ``rope.positions`` is "2d", else not allowed."""
    context_lengths: Int32Array | None = None
    """``[S]`` leading tokens that all tokens of a sequence see; needed if ``mask`` is "prefix",
    else not allowed. A context is computed in one step."""
    loras: Sequence[Any] = ()
    """``[S]`` what an adapter adds to the weights for each sequence, of the runner's ``new_lora``,
    or None; empty if for none."""
    prefixes: Sequence[Any] = ()
    """``[S]`` the trained prefix before each sequence, of the runner's ``new_prefix`` and the
    cache's type, or None; empty if before none. Not for a network that has one of its own."""
    sampling: SamplingInput | None = None
    return_logits: bool = False
    return_hidden: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """Arrays of one entry per logit row ``[L]``; empty where not asked for."""

    token_ids: Int32Array
    """The tokens chosen; -1 where the logits held NaN or infinity."""
    logprobs: Float32Array
    """Natural log probability of each chosen token under the raw logits."""
    top_ids: Int32Array
    """``[L, num_logprobs]``, likeliest first."""
    top_logprobs: Float32Array
    logits: Float32Array | None
    """``[L, vocab_size]``"""
    hidden: Float32Array | None = None
    """``[num_layers + 1, L, hidden_size]``: the embedding and what leaves each layer."""


def _check_length(name: str, array: npt.NDArray[np.generic], length: int) -> None:
    if array.shape != (length,):
        raise InvalidParameterError(
            f"{name} must have shape [{length}], but it has {list(array.shape)}."
        )


def _sampling_to_core(sampling: SamplingInput, num_rows: int, vocab_size: int) -> _core.Sampling:
    """Raises InvalidParameterError where the arrays do not fit."""
    sampling.check(num_rows, vocab_size)
    return _core.Sampling(
        sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed,
        sampling.position, sampling.repetition_penalty, sampling.presence_penalty,
        sampling.frequency_penalty, sampling.history, sampling.history_offsets,
        sampling.prompt_lengths, sampling.bias_ids, sampling.bias_values, sampling.bias_offsets,
        *sampling.masks(num_rows, vocab_size),
    )  # fmt: skip


def sample(logits: Float32Array, sampling: SamplingInput) -> StepResult:
    """The choice that a step makes, after logits ``[L, vocab_size]`` computed elsewhere.

    The result holds these logits.

    Raises:
        InvalidParameterError: the arrays do not fit each other, or an id is out of range.
    """
    num_rows, vocab_size = logits.shape
    core = _sampling_to_core(sampling, num_rows, vocab_size)
    for name, ids in (("history", sampling.history), ("bias_ids", sampling.bias_ids)):
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise InvalidParameterError(
                f"{name} holds ids from {ids.min()} to {ids.max()}, but token ids run from 0 to "
                f"{vocab_size - 1}."
            )
    if sampling.num_logprobs > vocab_size:
        raise InvalidParameterError(
            f"num_logprobs is {sampling.num_logprobs}, but the vocabulary has {vocab_size} tokens."
        )
    width = max(sampling.num_logprobs, 0)
    result = StepResult(
        token_ids=np.full(num_rows, -1, np.int32),
        logprobs=np.zeros(num_rows, np.float32),
        top_ids=np.zeros((num_rows, width), np.int32),
        top_logprobs=np.zeros((num_rows, width), np.float32),
        logits=logits,
    )
    overwritten = np.array(logits, np.float32, order="C")
    _core.sample(
        instruction_set(), overwritten, core, sampling.num_logprobs, result.token_ids,
        result.logprobs, result.top_ids, result.top_logprobs,
    )  # fmt: skip
    return result


class NativeModel:
    """One network with its packed weights and its threads.

    Load every weight of ``architecture.weight_shapes()``, call ``finish``, then ``step``. Steps and
    loads from several Python threads take turns; the GIL is released while they run.

    With GLIMMER_PIN=1 each thread but the caller's stays on a core of its own: for a machine that
    serves one model and nothing else.

    ``activations`` is the form in which int4 weights meet their inputs: "int8" is the fastest,
    "int16" has no rounding to speak of. int8 weights always meet int16.

    Raises:
        UnsupportedArchitectureError: a choice that the core does not run, by name.
        UnknownInstructionSetError: ``isa`` or GLIMMER_ISA names one that is not available.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_threads: int | None = None,
        isa: str | None = None,
        activations: Activations = "int8",
    ) -> None:
        if num_threads is None:
            num_threads = physical_cores()
        if not 1 <= num_threads <= MAX_THREADS:
            raise InvalidParameterError(
                f"num_threads must be between 1 and {MAX_THREADS}, but it is {num_threads}."
            )
        self.architecture = architecture
        self.decoder = _core.Decoder(
            to_core(architecture),
            num_threads,
            instruction_set(isa),
            getattr(_core.Form, activations),
            cpu_of_each_core()[:num_threads] if os.environ.get("GLIMMER_PIN") == "1" else [],
        )
        self._adopted: list[npt.NDArray[np.uint8]] = []
        self._finished = False

    @property
    def isa(self) -> str:
        return self.decoder.isa

    @property
    def num_threads(self) -> int:
        return self.decoder.num_threads

    @property
    def weights_bytes(self) -> int:
        """Memory of the packed matrices."""
        return self.decoder.packed_bytes

    def available_memory(self) -> int | None:
        """Bytes of free memory; None if nobody knows."""
        return available_memory()

    def new_cache(self, num_blocks: int, dtype: KVDType) -> KVCache:
        """Raises as ``KVCache``."""
        return KVCache(self, num_blocks, dtype)

    def new_lora(self, parts: Mapping[str, tuple[Float32Array, Float32Array, float]]) -> Lora:
        """Raises as ``Lora``."""
        from glimmer.native.adapter_weights import Lora  # which needs this module

        return Lora(self, parts)

    def new_prefix(self, values: Float32Array, dtype: KVDType) -> KVPrefix:
        """Raises as ``KVPrefix``."""
        from glimmer.native.adapter_weights import KVPrefix

        return KVPrefix(self, values, dtype)

    def load(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        data: npt.NDArray[np.uint8],
        target: str | None = None,
    ) -> None:
        """Pack one weight from its stored bytes; a matrix is converted to ``target`` if given.

        Routers of experts, vectors and trained prefixes are kept as float32 all the same.

        Raises:
            MalformedCheckpointError: unknown or repeated name, wrong shape or size.
            UnsupportedTensorTypeError: ``dtype`` or ``target`` is not one the core runs.
        """
        self.decoder.load(name, dtype, list(shape), np.ascontiguousarray(data).reshape(-1), target)

    def kept(
        self, name: str, dtype: str, shape: Sequence[int], target: str | None = None
    ) -> tuple[str, int]:
        """The type in which a weight stored as ``dtype`` is kept, and its bytes as ``pack`` gives
        them. Raises as ``load``."""
        return self.decoder.kept(name, dtype, list(shape), target)

    def pack(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        data: npt.NDArray[np.uint8],
        target: str | None = None,
    ) -> npt.NDArray[np.uint8]:
        """What ``load`` makes of one weight, uint8 ``[bytes]``; raises as it does."""
        packed = np.zeros(self.kept(name, dtype, shape, target)[1], np.uint8)
        stored = np.ascontiguousarray(data).reshape(-1)
        self.decoder.pack(name, dtype, list(shape), stored, target, packed)
        return packed

    def adopt(
        self,
        name: str,
        dtype: str,
        shape: Sequence[int],
        packed: npt.NDArray[np.uint8],
        target: str | None = None,
        *,
        in_place: bool | None = None,
    ) -> bool:
        """Take one weight of type ``dtype`` that ``pack`` made, uint8 ``[bytes]``.

        ``packed`` begins at a multiple of ``PACKED_ALIGNMENT``. A matrix of type ``target``, or of
        any if there is none, is used where it lies or copied, as ``in_place`` says; by default it
        is copied unless it lies in large pages, in which it is read much faster.

        Returns whether it is used where it lies, and then held for as long as this model lives.
        Raises as ``load``; MalformedCheckpointError too if the file that ``packed`` maps has
        become shorter.
        """
        stays = self.decoder.adopt(name, dtype, list(shape), packed, target, in_place)
        if stays:
            self._adopted.append(packed)
        return stays

    def finish(self) -> None:
        """Raise MalformedCheckpointError, naming them, if weights are missing."""
        self.decoder.finish()
        self._finished = True

    def step(self, cache: KVCache, step: StepInput) -> StepResult:
        """Run one batch: forward pass, then the choice of tokens. [T] tokens in, [L] rows out.

        Raises:
            InvalidParameterError: an id, length or table is out of range, a context comes in
                pieces, an array is missing that the network needs, or the cache or an adapter is
                another network's; nothing was changed.
        """
        assert self._finished, "finish() comes before step()"
        num_rows, sampling = len(step.logit_rows), step.sampling
        num_tokens, num_sequences = len(step.token_ids), len(step.query_lengths)
        _check_length("kv_lengths", step.kv_lengths, num_sequences)
        if step.block_tables.ndim != 2 or len(step.block_tables) != num_sequences:
            raise InvalidParameterError(
                f"block_tables must have shape [{num_sequences}, max_blocks], but it has "
                f"{list(step.block_tables.shape)}."
            )
        if (total := int(step.query_lengths.sum(dtype=np.int64))) != num_tokens:
            raise InvalidParameterError(
                f"query_lengths add up to {total}, but {num_tokens} tokens were given."
            )
        positions = step.positions
        if positions is None:
            starts = step.kv_lengths - step.query_lengths
            positions = np.concatenate(
                [np.arange(start, end, dtype=np.int32)
                 for start, end in zip(starts, step.kv_lengths, strict=True)]
                or [np.empty(0, np.int32)]
            )  # fmt: skip
        else:
            _check_length("positions", positions, num_tokens)
        if step.block_positions is not None:
            _check_length("block_positions", step.block_positions, num_tokens)
        if step.context_lengths is not None:
            _check_length("context_lengths", step.context_lengths, num_sequences)
        for name, given in (("loras", step.loras), ("prefixes", step.prefixes)):
            if len(given) not in (0, num_sequences):
                raise InvalidParameterError(
                    f"{name} must be empty or have an entry for each of the {num_sequences} "
                    f"sequences, but it has {len(given)}."
                )
        core_sampling, num_logprobs, chosen = None, -1, 0
        if sampling is not None:
            core_sampling = _sampling_to_core(sampling, num_rows, self.architecture.vocab_size)
            num_logprobs, chosen = sampling.num_logprobs, num_rows
        width = max(num_logprobs, 0)
        result = StepResult(
            token_ids=np.full(chosen, -1, np.int32),
            logprobs=np.zeros(chosen, np.float32),
            top_ids=np.zeros((chosen, width), np.int32),
            top_logprobs=np.zeros((chosen, width), np.float32),
            logits=np.empty((num_rows, self.architecture.vocab_size), np.float32)
            if step.return_logits
            else None,
            hidden=np.empty(
                (self.architecture.num_layers + 1, num_rows, self.architecture.hidden_size),
                np.float32,
            )
            if step.return_hidden
            else None,
        )
        # None is a null pointer to the core, of which its stub knows nothing.
        loras: list[Any] = [None if lora is None else lora.core for lora in step.loras]
        prefixes: list[Any] = [None if p is None else p.core for p in step.prefixes]
        hidden = None
        if result.hidden is not None:
            hidden = result.hidden.reshape(-1, self.architecture.hidden_size)
        self.decoder.step(
            cache.core, step.token_ids, positions, step.block_positions, step.query_lengths,
            step.kv_lengths, step.context_lengths, step.block_tables,
            loras, prefixes, step.logit_rows, core_sampling, num_logprobs, result.logits, hidden,
            result.token_ids, result.logprobs, result.top_ids, result.top_logprobs,
        )  # fmt: skip
        return result


class KVCache:
    """``num_blocks`` blocks of ``BLOCK_SIZE`` tokens of all layers; the engine knows whose.

    A network's trained prefix lies in blocks of its own, beyond these: ``size_bytes`` counts them.

    Raises:
        MalformedCheckpointError: the network has a trained prefix and lacks weights yet.
        OutOfMemoryError: the system refuses the memory.
    """

    def __init__(self, model: NativeModel, num_blocks: int, dtype: KVDType = "float16") -> None:
        if not 1 <= num_blocks < 2**31:
            raise InvalidParameterError(
                f"num_blocks must be between 1 and {2**31 - 1}, but it is {num_blocks}."
            )
        self.core = _core.KVCache(model.decoder, getattr(_core.KVDType, dtype), num_blocks)
        self.num_blocks = num_blocks
        self.size_bytes = self.core.size_bytes

    def copy_block(self, source: int, target: int) -> None:
        """Make block ``target`` equal to ``source``, in all layers.

        Raises:
            InvalidParameterError: there is no such block.
        """
        self.core.copy_block(source, target)

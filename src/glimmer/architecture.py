"""The numbers and choices that make one network. Knows no family, no file and no tensor data.

A family turns its config into an ``Architecture``; the native core runs it. Every choice that tells
one network of the lineage from another has a name here, so that neither the core nor the engine
ever asks which family it serves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from glimmer.errors import InvalidParameterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding of queries and keys.

    ``dims`` leading channels of each head are rotated (of each half head when ``positions`` is
    "2d"); pair ``i`` turns by ``position / linear_scale * base ** (-2 i / dims)``.
    """

    dims: int
    base: float
    pairing: Literal["interleaved", "half"] = "interleaved"
    """Which channels turn together: (2i, 2i + 1), or (i, i + dims / 2)."""
    positions: Literal["1d", "2d"] = "1d"
    linear_scale: float = 1.0
    frequency_dtype: Literal["float32", "float16"] = "float32"
    """What ``base ** (-2 i / dims)`` is rounded to before it is multiplied with the position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blanks:
    """The tokens by which a blank-infilling network lays out a text (GLM, arXiv 2103.10360).

    The text before the first ``start_id`` is the context, which holds a blank; from there on comes
    what fills the blank.
    """

    start_id: int
    blank_ids: tuple[int, ...]
    """Tokens that stand for a blank; where several kinds occur, the first of these counts."""
    several: bool = False
    """Whether it is known to have been trained to fill the blanks of a text one after another,
    each behind what fills the one before."""


@dataclass(frozen=True, slots=True)
class TextLayout:
    """Where each token of a text stands."""

    context_length: int
    """Leading tokens that every token attends to; 0 with a causal mask."""
    positions: tuple[int, ...]
    block_positions: tuple[int, ...] | None
    """Distance into what fills the blank, 0 in the context; None unless positions are "2d"."""

    def position(self, index: int) -> int:
        """Of token ``index``, which may lie beyond the text: what follows goes on as it ended."""
        beyond = max(0, index + 1 - len(self.positions))
        stays = self.block_positions is not None  # at the blank that is being filled
        return self.positions[index - beyond] + (0 if stays else beyond)

    def block_position(self, index: int) -> int:
        """Like ``position``, of the second row; "2d" only."""
        assert self.block_positions is not None
        beyond = max(0, index + 1 - len(self.block_positions))
        return self.block_positions[index - beyond] + beyond


def span_layout(context_length: int, spans: Iterable[tuple[int, int]]) -> TextLayout:
    """Where tokens stand that fill blanks, in a network that sees its context both ways and has
    two positions for each token (GLM, arXiv 2103.10360, section 2.2; ChatGLM-6B).

    ``spans`` are what follows the context, in order: the index of a blank there, and the number of
    tokens that fill it, the start token included. All of these stand at their blank, and count
    from 1 in the second row.
    """
    positions: list[int] = list(range(context_length))
    block_positions = [0] * context_length
    for blank, length in spans:
        positions += [blank] * length
        block_positions += range(1, length + 1)
    return TextLayout(context_length, tuple(positions), tuple(block_positions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts instead of the MLP, in all but the first ``num_dense_layers`` layers.

    ``intermediate_size`` is that of one expert; the shared ones are a single MLP of
    ``num_shared_experts`` times that width.
    """

    num_experts: int
    num_experts_per_token: int
    num_shared_experts: int
    intermediate_size: int
    num_dense_layers: int
    num_groups: int = 1
    num_groups_per_token: int = 1
    normalize_weights: bool = True
    routed_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One decoder-only network. Sizes are counts of channels, heads, layers or tokens."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    rope: Rope
    norm_eps: float
    norm: Literal["rms", "layer"] = "rms"
    norm_place: Literal["pre", "sandwich"] = "pre"
    """"sandwich" adds a norm after attention and after the MLP, before the residual sum."""
    residual: Literal["input", "normed"] = "input"
    """What a block adds its result to: its input, or its normed input times ``residual_scale``."""
    residual_scale: float = 1.0
    mask: Literal["causal", "prefix"] = "causal"
    """"prefix": the context of a text is seen by all of it, also by what stands before."""
    blanks: Blanks | None = None
    """Where a text's context ends; needed by the "prefix" mask and by "2d" positions."""
    mlp: Literal["swiglu", "gelu_tanh"] = "swiglu"
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    experts: Experts | None = None
    prefix_length: int = 0
    """Trained key/value prefix tokens (P-Tuning v2); 0 for none."""
    tied_head: bool = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Architecture:
        """The network whose fields ``asdict`` gave, perhaps by way of JSON.

        Raises:
            InvalidParameterError: a field is unknown, missing or of another type.
        """
        network: Architecture = _from_values(cls, values, "the architecture")
        return network

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of float16 keys and values that one token occupies over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * 2

    @property
    def needs_whole_prompts(self) -> bool:
        """Whether a prompt must be computed in one step: its tokens see those that come after."""
        return self.mask == "prefix"

    @property
    def fills_blanks(self) -> bool:
        """Whether it can fill a blank amid a text (see ``span_layout``)."""
        return self.blanks is not None and self.mask == "prefix" and self.rope.positions == "2d"

    def layout(self, token_ids: Sequence[int]) -> TextLayout:
        """Where the tokens of a text stand. One more token never moves those before it.

        Raises:
            InvalidParameterError: the text holds no start token or no blank, and the network needs
                them.
        """
        length = len(token_ids)
        if self.blanks is None:
            return TextLayout(0, tuple(range(length)), None)
        start, blank = self._find_blank(token_ids)
        whole = span_layout(start, [(blank, length - start)])
        is_2d = self.rope.positions == "2d"
        return TextLayout(
            context_length=start if self.mask == "prefix" else 0,
            positions=whole.positions if is_2d else tuple(range(length)),
            block_positions=whole.block_positions if is_2d else None,
        )

    def _find_blank(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """Index of the first start token, and of the blank that counts."""
        assert self.blanks is not None
        first = {token: i for i, token in reversed(list(enumerate(token_ids)))}
        start = first.get(self.blanks.start_id)
        blank = next((first[token] for token in self.blanks.blank_ids if token in first), None)
        if start is None or blank is None:
            raise InvalidParameterError(
                f"A prompt of this network needs a start token ({self.blanks.start_id}) and before "
                f"it a blank ({' or '.join(map(str, self.blanks.blank_ids))}), but this one has no "
                f"{'start token' if start is None else 'blank'}. The chat template adds both."
            )
        return start, blank

    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Canonical weight names and shapes, ``[out, in]`` for matrices, as the core has them."""
        h = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, h)}
        for n in range(self.num_layers):
            for name, shape in self.layer_shapes(n).items():
                shapes[f"layers.{n}.{name}"] = shape
        shapes.update({"final_norm" + part: (h,) for part in self._norm_parts})
        if not self.tied_head:
            shapes["head.weight"] = (self.vocab_size, h)
        return shapes

    @property
    def _norm_parts(self) -> tuple[str, ...]:
        return (".weight", ".bias") if self.norm == "layer" else (".weight",)

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and layer >= self.experts.num_dense_layers

    def layer_shapes(self, layer: int) -> Mapping[str, tuple[int, ...]]:
        """The weights of one layer, without its "layers.N." in front."""
        h, q = self.hidden_size, self.num_heads * self.head_dim
        kv = self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {}

        def linear(name: str, rows: int, cols: int, bias: bool) -> None:
            shapes[name + ".weight"] = (rows, cols)
            if bias:
                shapes[name + ".bias"] = (rows,)

        def mlp(prefix: str, width: int, bias: bool) -> None:
            if self.mlp == "swiglu":
                linear(prefix + "mlp_gate", width, h, bias)
            linear(prefix + "mlp_up", width, h, bias)
            linear(prefix + "mlp_down", h, width, bias)

        places = ["attn_norm", "mlp_norm"]
        if self.norm_place == "sandwich":
            places += ["attn_post_norm", "mlp_post_norm"]
        for place in places:
            shapes.update({place + part: (h,) for part in self._norm_parts})
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            linear(name, rows, h, self.qkv_bias)
        linear("attn_out", h, q, self.attention_out_bias)
        if self.qk_norm:
            shapes["attn_q_norm.weight"] = (self.head_dim,)
            shapes["attn_k_norm.weight"] = (self.head_dim,)
        if self.prefix_length:
            shapes["prefix_keys.weight"] = (self.prefix_length, kv)
            shapes["prefix_values.weight"] = (self.prefix_length, kv)
        if self.experts is None or not self.has_experts(layer):
            mlp("", self.intermediate_size, self.mlp_bias)
            return shapes
        e = self.experts
        shapes["router.weight"] = (e.num_experts, h)
        shapes["router.bias"] = (e.num_experts,)
        for i in range(e.num_experts):
            mlp(f"experts.{i}.", e.intermediate_size, False)
        if e.num_shared_experts:
            mlp("shared.", e.intermediate_size * e.num_shared_experts, False)
        return shapes

    @property
    def num_parameters(self) -> int:
        """Counted from one layer of each kind: a damaged file may claim billions of them."""

        def size(shapes: Mapping[str, tuple[int, ...]]) -> int:
            return sum(math.prod(shape) for shape in shapes.values())

        last = self.num_layers - 1
        dense = min(self.experts.num_dense_layers, self.num_layers) if self.experts else 0
        return (
            size(replace(self, num_layers=0).weight_shapes())
            + dense * size(self.layer_shapes(0))
            + (self.num_layers - dense) * size(self.layer_shapes(last))
        )


def _from_values(kind: Any, values: Any, what: str) -> Any:
    """A value of a field's type from what JSON makes of it."""
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(values, Mapping):
            raise _unfit(what, values, "an object")
        known = {f.name for f in fields(kind)}
        needed = {f.name for f in fields(kind) if f.default is MISSING}
        if wrong := (values.keys() - known) | (needed - values.keys()):
            raise InvalidParameterError(
                f"{what} has unknown fields or lacks some: {', '.join(sorted(map(str, wrong)))}."
            )
        types = get_type_hints(kind)
        return kind(**{n: _from_values(types[n], v, f"{what}'s {n}") for n, v in values.items()})
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        if values not in choices:
            raise _unfit(what, values, f"one of {', '.join(choices)}")
        return values
    if get_origin(kind) is tuple:
        if not isinstance(values, list | tuple):
            raise _unfit(what, values, "a list")
        return tuple(_from_values(choices[0], value, what) for value in values)
    if type(None) in choices:
        return None if values is None else _from_values(choices[0], values, what)
    if kind is float and type(values) is int:
        return float(values)
    if type(values) is not kind:
        raise _unfit(what, values, f"of type {kind.__name__}")
    return values


def _unfit(what: str, value: object, wanted: str) -> InvalidParameterError:
    return InvalidParameterError(f"{what} must be {wanted}, but it is {value!r:.80}.")

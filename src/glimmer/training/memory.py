"""What memory a fine-tuning run takes, told from the network alone. Knows no torch.

All is counted as Transformers, PEFT and PyTorch's AdamW lay it out. For b texts of s tokens each
(n = b s tokens), of which a number takes c bytes (c = 2 for bfloat16 and float16, 4 for float32):

    weights      c for each, 4 bits with their scales for the linear layers of QLoRA: a scale of 8
                 bits for 64 weights, and one of 32 bits for 256 scales (arXiv 2305.14314)
    trained      LoRA adds r (in + out) to each linear layer (``adapted``), P-Tuning 2 L P kv for
                 its prefix of P tokens. What is added is float32; what is trained of the network
                 itself keeps c.
    gradients    one number for each that is trained
    optimizer    two, AdamW's moments
    activations  what a layer keeps for the backward pass, in bytes per token:
                     norms         4 h each (float32), and c h if its weight is trained
                     layer inputs  c for each input of a linear layer that is trained; with LoRA 4,
                                   for every layer anew if c is 2, and 4 r
                     attention     c (2 q + 2 q (s + P) / s): queries, output, keys and values, the
                                   last two repeated for all heads; c s for the mask; 4 per head;
                                   2 c q more where one layer makes all three, of which the values
                                   are a view
                     SwiGLU        3 c f: gate, up and the activated gate; GELU: c f
                 and for all layers together (12 + c) V, the logits: as they are, and in float32
                 their log-softmax and two gradients.
                 With gradient checkpointing a layer keeps its input alone, c h, and one layer at a
                 time is computed again.

DPO reads two texts for each preference, 2 b of them, and asks the network as it was what it thinks
of them: its weights once more, but not with LoRA, which can be left out for a moment. Instead of
the logits there are the inputs of the head, c h for each token, and tiles of t = min(4096, n)
tokens: c 32768 t bytes, and on a processor 33 more for each of t min(32768, V) log-probabilities.

h: hidden size, q: all query heads, kv: all KV heads, f: intermediate size, V: vocabulary, L:
layers, r: rank. The sum is an upper bound of what is held at one time: gradients come while
activations go, unless several passes make one step, as a run is set up by default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from glimmer.architecture import Architecture
from glimmer.errors import InvalidParameterError
from glimmer.families import Family
from glimmer.families.weight_map import Layout
from glimmer.training.choices import Device, Dtype, Method, Objective

_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_NF4_BYTES = 0.5 + (1 + 4 / 256) / 64
_ADAPTER_BYTES = 4
_TILE_TOKENS, _TILE_WORDS, _TILE_BYTES = 4096, 32768, 33  # of TRL's fused head


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneChoices:
    """What a run is told, as its config names it."""

    method: Method = "lora"
    objective: Objective = "sft"
    device: Device = "cpu"
    batch_size: int = 1
    """Texts, or preferences of two texts each."""
    length: int = 2048
    """Tokens of each text."""
    dtype: Dtype = "bfloat16"
    """Of the network's weights and of what is computed."""
    gradient_checkpointing: bool = False
    lora_rank: int = 8
    prefix_tokens: int = 128
    prefix_projection: bool = False
    prefix_hidden_size: int | None = None
    trained_layers: int = 2
    keep_checkpoints: int = 2

    @property
    def num_tokens(self) -> int:
        """Of a batch."""
        return self.batch_size * self.length * (2 if self.objective == "dpo" else 1)

    def check(self, a: Architecture) -> None:
        """Raise InvalidParameterError for values that are out of their range."""
        for name in ("batch_size", "length", "lora_rank", "prefix_tokens", "trained_layers"):
            if getattr(self, name) < 1:
                raise InvalidParameterError(
                    f"{name} must be at least 1, but it is {getattr(self, name)}."
                )
        for name, kinds in (("method", Method), ("objective", Objective), ("device", Device)):
            if getattr(self, name) not in get_args(kinds):
                raise InvalidParameterError(
                    f"The {name} must be one of {', '.join(get_args(kinds))}, but it is "
                    f"{getattr(self, name)!r}."
                )
        if self.length > a.max_position:
            raise InvalidParameterError(
                f"The length must be at most the {a.max_position} tokens that the model was built "
                f"for, but it is {self.length}."
            )
        if self.method == "freeze" and self.trained_layers > a.num_layers:
            raise InvalidParameterError(
                f"trained_layers is {self.trained_layers}, but the network has {a.num_layers} "
                "layers."
            )


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """Bytes by what they are for, and counts of numbers."""

    weights: int
    """Of the network, and of what a method adds to it."""
    gradients: int
    optimizer: int
    activations: int
    reference: int
    """Weights of the network that DPO compares with, where it is held a second time."""
    total_parameters: int
    """Of the network, and of what a method adds to it."""
    trained_parameters: int
    result: int
    """On disk: the adapter, or the whole network."""
    checkpoints: int
    """On disk: what is kept to resume from."""

    @property
    def peak(self) -> int:
        """Without the program and its libraries."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.reference

    @property
    def disk(self) -> int:
        return self.result + self.checkpoints


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """One linear layer as Transformers has it, perhaps of several canonical weights."""

    inputs: int
    outputs: int
    parts: tuple[str, ...] = field(default=())
    """Canonical names without "layers.N." and ".weight"."""


def linear_layers(a: Architecture, layout: Layout, layer: int) -> list[LinearLayer]:
    """The linear layers of one layer of the network: all but a mixture's experts and its router,
    which Transformers keeps as plain arrays."""
    found: dict[str, LinearLayer] = {}
    for name, shape in a.layer_shapes(layer).items():
        if len(shape) != 2 or name.startswith(("router", "experts", "prefix")):
            continue
        pieces = layout.pieces_of(f"layers.{layer}.{name}")
        tensor = pieces[0].tensor if pieces else name
        rows, columns = shape
        part = name.removesuffix(".weight")
        before = found.get(tensor, LinearLayer(columns, 0))
        found[tensor] = LinearLayer(columns, before.outputs + rows, (*before.parts, part))
    return list(found.values())


def adapted(a: Architecture, modules: Iterable[LinearLayer]) -> list[LinearLayer]:
    """Those that LoRA adapts: all, but of a mixture of experts attention's alone. There PEFT takes
    the names of the dense layers for those of the experts, as they once were called."""
    return [m for m in modules if a.experts is None or m.parts[0].startswith("attn_")]


def training_layout(family: Family) -> Layout:
    """The layout in which Transformers runs a family: the one that its exporter writes."""
    weight_map = family.weight_map
    found = weight_map.layout(family.exporter.folder.layout) if family.exporter else None
    return found or weight_map.layouts[0]


def plan_finetuning(a: Architecture, family: Family, choices: FinetuneChoices) -> FinetunePlan:
    """The memory of one process of a run.

    Raises:
        InvalidParameterError: a value is out of its range.
    """
    choices.check(a)
    layout = training_layout(family)
    size = _BYTES[choices.dtype]
    layers = [linear_layers(a, layout, n) for n in range(a.num_layers)]
    network = a.num_parameters
    base = size * network
    added = trained = 0
    if choices.method == "qlora":
        linear = sum(module.inputs * module.outputs for modules in layers for module in modules)
        base = math.ceil(size * (network - linear) + _NF4_BYTES * linear)
    if choices.method in ("lora", "qlora"):
        added = trained = choices.lora_rank * sum(
            module.inputs + module.outputs for modules in layers for module in adapted(a, modules)
        )
    elif choices.method == "ptuning":
        added = trained = _prefix_parameters(a, family, choices)
    elif choices.method == "freeze":
        trained = sum(
            math.prod(shape)
            for n in range(a.num_layers - choices.trained_layers, a.num_layers)
            for shape in a.layer_shapes(n).values()
        )
    else:
        trained = network
    number = _ADAPTER_BYTES if added else size
    compares = choices.objective == "dpo" and choices.method not in ("lora", "qlora")
    result = number * trained if added else size * network
    return FinetunePlan(
        weights=base + _ADAPTER_BYTES * added,
        gradients=number * trained,
        optimizer=2 * number * trained,
        activations=_activations(a, layers, choices),
        reference=base if compares else 0,
        total_parameters=network + added,
        trained_parameters=trained,
        result=result,
        checkpoints=choices.keep_checkpoints * (result + 2 * number * trained),
    )


def _prefix_parameters(a: Architecture, family: Family, choices: FinetuneChoices) -> int:
    """Of PrefixEncoder in the official modeling_chatglm.py."""
    tokens = choices.prefix_tokens
    width = 2 * a.num_layers * a.num_kv_heads * a.head_dim
    if not choices.prefix_projection:
        return tokens * width
    encoders = [x for layout in family.weight_map.layouts if (x := layout.prefix_encoder)]
    narrow = any(encoder.embedding_is_hidden for encoder in encoders)
    rows = a.hidden_size if narrow else width
    hidden = choices.prefix_hidden_size or a.hidden_size
    return tokens * rows + rows * hidden + hidden + hidden * width + width


def _activations(
    a: Architecture, layers: Sequence[list[LinearLayer]], choices: FinetuneChoices
) -> int:
    """Bytes, of all tokens of a batch."""
    size, tokens = _BYTES[choices.dtype], choices.num_tokens
    first = a.num_layers - choices.trained_layers if choices.method == "freeze" else 0
    kept = [
        _layer_bytes(a, n, modules, choices)
        for n, modules in enumerate(layers)
        if n >= first
    ]  # fmt: skip
    width = max(
        a.intermediate_size,
        a.experts.intermediate_size * a.experts.num_experts_per_token if a.experts else 0,
    )
    backward = 4 * size * width  # gradients inside an MLP
    logits: float = (12 + size) * a.vocab_size
    end = 4 * a.hidden_size + (2 * size * a.hidden_size if choices.method == "full" else 0)
    if choices.objective == "dpo":
        logits = size * _TILE_WORDS
        if choices.device == "cpu":
            logits += _TILE_BYTES * min(a.vocab_size, _TILE_WORDS)
        logits *= min(tokens, _TILE_TOKENS) / tokens
        if choices.method == "full":
            logits += 4 * a.vocab_size * a.hidden_size / tokens  # the head's gradient, summed up
        end += size * a.hidden_size
    if choices.gradient_checkpointing:
        per_token = a.num_layers * size * a.hidden_size + max(logits, max(kept) + backward)
    else:
        per_token = sum(kept) + max(logits, backward)
    dequantized = 0
    if choices.method == "qlora":  # the largest layer, as it is multiplied
        dequantized = size * max(m.inputs * m.outputs for modules in layers for m in modules)
    return math.ceil(tokens * (per_token + end)) + dequantized


def _layer_bytes(
    a: Architecture, layer: int, modules: Sequence[LinearLayer], choices: FinetuneChoices
) -> float:
    """What one layer keeps, per token."""
    size, h = _BYTES[choices.dtype], a.hidden_size
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    trained = choices.method in ("full", "freeze")
    joined = any({"attn_q", "attn_v"} <= {*module.parts} for module in modules)
    modules = modules if trained else adapted(a, modules)
    by_part = {part: module for module in modules for part in module.parts}

    def inputs(width: int, *parts: str) -> float:
        """Of the linear layers with these parts."""
        found = {id(by_part[p]): by_part[p] for p in parts if p in by_part}.values()
        if trained:
            return size * width
        if choices.method not in ("lora", "qlora"):
            return 0
        copies = 1 if size == _ADAPTER_BYTES else len(found)
        return _ADAPTER_BYTES * (copies * width + choices.lora_rank * len(found))

    def norm(width: int) -> int:
        if a.norm == "layer":
            return size * width  # fused: its input alone
        return 4 * width + (size * width if trained else 0)

    def mlp(prefix: str, width: int) -> float:
        kept: float = (3 if a.mlp == "swiglu" else 1) * size * width
        kept += inputs(h, prefix + "mlp_gate", prefix + "mlp_up")
        return kept + inputs(width, prefix + "mlp_down")

    kept: float = norm(h) * (4 if a.norm_place == "sandwich" else 2)
    if a.qk_norm:
        kept += norm(q) + norm(kv)
    kept += inputs(h, "attn_q", "attn_k", "attn_v")
    prefix = choices.prefix_tokens if choices.method == "ptuning" else 0
    keys = choices.length + prefix
    kept += size * (2 * q + 2 * q * keys / choices.length + keys) + 4 * a.num_heads
    if joined and not prefix:  # a prefix is put before a copy of the values
        kept += size * 2 * q
    kept += inputs(q, "attn_out")
    if not a.has_experts(layer):
        return kept + mlp("", a.intermediate_size)
    assert a.experts is not None
    e = a.experts
    chosen = e.num_experts_per_token * size
    kept += chosen * (3 * e.intermediate_size + h) + 8 * e.num_experts
    if trained:
        kept += chosen * (h + e.intermediate_size)
        kept += 4 * h if size < 4 else 0  # what the router sees, in float32
    return kept + mlp("shared.", e.intermediate_size * e.num_shared_experts)

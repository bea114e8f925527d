"""P-Tuning v2: a trainable prefix for any model of the bridge, and its official files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from glimmer.checkpoints import Checkpoint, FolderCheckpoint, safetensors_writer
from glimmer.checkpoints.atomic import new_folder
from glimmer.errors import InvalidParameterError, MalformedCheckpointError
from glimmer.hf.prefix_attention import NAME, STATES
from glimmer.hf.prefix_encoder import PREFIX_TENSORS, PrefixEncoder
from glimmer.hf.tensors import FLOAT_DTYPES, dtype_name
from glimmer.quantization import dequantize

__all__ = [
    "OFFICIAL_PREFIX",
    "PREFIX_TENSORS",
    "PrefixEncoder",
    "add_prefix",
    "attach_prefix",
    "load_prefix",
    "new_encoder",
    "read_prefix",
    "save_prefix",
    "use_prefix",
]

OFFICIAL_PREFIX = "transformer.prefix_encoder."


def add_prefix(
    model: PreTrainedModel, num_tokens: int, projection: bool, hidden_size: int | None = None
) -> None:
    """Give a model a new prefix, which is random until it is trained.

    It becomes a submodule, ``model.base_model.prefix_encoder``, in float32 and trainable; nothing
    else of the model is frozen here. ``hidden_size`` is the width inside the projection, by default
    the model's own. Attention goes by way of SDPA from now on.

    Raises:
        InvalidParameterError: a number is not positive, or the model has a prefix.
    """
    for name, value in (("num_tokens", num_tokens), ("hidden_size", hidden_size)):
        if value is not None and value < 1:
            raise InvalidParameterError(f"{name} must be at least 1, but it is {value}.")
    encoder = new_encoder(model, num_tokens, projection, hidden_size)
    attach_prefix(model, encoder)


def new_encoder(
    model: PreTrainedModel, num_tokens: int, projection: bool, hidden_size: int | None = None
) -> PrefixEncoder:
    config = model.config
    return PrefixEncoder(
        num_tokens,
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        projection=projection,
        hidden_size=hidden_size or config.hidden_size,
        embedding_size=getattr(model.base_model, "prefix_embedding_size", None),
    )


def attach_prefix(
    model: PreTrainedModel, prefix: PrefixEncoder | Mapping[str, torch.Tensor]
) -> None:
    """Give a model this prefix, an encoder or its tensors by ``PREFIX_TENSORS``.

    Raises:
        InvalidParameterError: the model has a prefix, or this one is of another network.
    """
    base = model.base_model
    if getattr(base, "prefix_encoder", None) is not None:
        raise InvalidParameterError(
            f"The model has a prefix of {model.config.pre_seq_len} tokens already. Train that one, "
            "or load the model anew."
        )
    encoder = prefix if isinstance(prefix, PrefixEncoder) else _encoder_of(model, prefix)
    encoder.to(device=model.get_input_embeddings().weight.device, dtype=torch.float32)
    encoder.train(model.training)
    base.prefix_encoder = encoder
    use_prefix(base)
    model.config.pre_seq_len = encoder.shape[0]
    model.config.prefix_projection = encoder.projection


def use_prefix(base: PreTrainedModel) -> None:
    """Let every forward pass of the network below the head take its ``prefix_encoder`` along."""
    base.set_attn_implementation(NAME)
    base.register_forward_pre_hook(_give_prefix, with_kwargs=True)


def _give_prefix(
    base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    wanted = kwargs.get("position_ids") is None and not getattr(base, "makes_positions", False)
    if wanted and mask is not None and mask.dim() == 2:
        # transformers numbers padding too, which only shifts a text against itself. A prefix stays
        # where it is: the text must begin at 0, as it does in ``generate``.
        given = kwargs.get("input_ids")
        length = (kwargs["inputs_embeds"] if given is None else given).shape[1]
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        kwargs = {**kwargs, "position_ids": positions[:, -length:]}
    return args, {**kwargs, STATES: base.prefix_encoder.states()}


def _encoder_of(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> PrefixEncoder:
    config = model.config
    rows = tensors[PREFIX_TENSORS[0]]
    projection = PREFIX_TENSORS[1] in tensors
    with torch.device("meta"):
        encoder = PrefixEncoder(
            rows.shape[0],
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            projection=projection,
            hidden_size=tensors[PREFIX_TENSORS[1]].shape[0] if projection else None,
            embedding_size=rows.shape[1],
        )
    wanted = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        raise InvalidParameterError(
            f"The prefix has the tensors {found}, but for this network ({math.prod(encoder.shape)} "
            f"keys and values) it would have {wanted}. Take the model that it was trained on."
        )
    encoder.load_state_dict(dict(tensors), assign=True)
    return encoder.requires_grad_()


def read_prefix(checkpoint: Checkpoint, prefix: str = OFFICIAL_PREFIX) -> dict[str, torch.Tensor]:
    """The tensors of a prefix, whose names begin with ``prefix``, in float32.

    Raises:
        MalformedCheckpointError: there is none, or a part of it is missing or of no float type.
    """
    found = {name: checkpoint.tensors.get(prefix + name) for name in PREFIX_TENSORS}
    there = {name: info for name, info in found.items() if info is not None}
    if set(there) not in ({PREFIX_TENSORS[0]}, set(PREFIX_TENSORS)):
        raise MalformedCheckpointError(
            f"{checkpoint.path} holds {', '.join(prefix + name for name in there) or 'nothing'} of "
            f"a trained prefix, which is {prefix}{PREFIX_TENSORS[0]}, alone or with "
            f"{', '.join(PREFIX_TENSORS[1:])}. The file is incomplete, or holds no P-Tuning v2."
        )
    tensors = {}
    for name, info in there.items():
        if info.dtype not in FLOAT_DTYPES:
            raise MalformedCheckpointError(
                f"{checkpoint.path}: {prefix}{name} is {info.dtype}, but a prefix is one of "
                f"{', '.join(FLOAT_DTYPES)}."
            )
        data = dequantize(info.dtype, checkpoint.read(prefix + name).reshape(-1), info.shape)
        tensors[name] = torch.tensor(data)
    return tensors


def load_prefix(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Give a model the prefix of a folder, ``save_prefix``'s or the official training's.

    Raises:
        CheckpointError: the folder is at fault.
        InvalidParameterError: it is of another network, or the model has a prefix.
    """
    with FolderCheckpoint(folder) as checkpoint:
        attach_prefix(model, read_prefix(checkpoint))


def save_prefix(
    model: PreTrainedModel, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a model's prefix as the official training does: config.json, which says ``pre_seq_len``
    and ``prefix_projection`` beside the model's own keys, and the prefix' tensors alone.

    Raises:
        InvalidParameterError: the model has no prefix, or the folder exists.
        OutputError: it cannot be written.
    """
    encoder = getattr(model.base_model, "prefix_encoder", None)
    if encoder is None:
        raise InvalidParameterError("The model has no prefix: add_prefix gives it one.")
    tensors = encoder.state_dict()
    new = [
        safetensors_writer.NewTensor(
            OFFICIAL_PREFIX + name, dtype_name(tensor.dtype), tuple(tensor.shape), _bytes_of(tensor)
        )
        for name, tensor in tensors.items()
    ]
    config = json.loads(model.config.to_json_string())
    with new_folder(
        Path(folder), size_bytes=sum(t.size_bytes for t in new), overwrite=overwrite
    ) as made:
        safetensors_writer.write_safetensors(made, new)
        (made / "config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _bytes_of(tensor: torch.Tensor) -> Callable[[], Any]:
    return lambda: tensor.detach().cpu().contiguous().view(torch.uint8).numpy()

"""What kind of adapter lies in a folder?"""

from __future__ import annotations

import os
from pathlib import Path

from glimmer.adapters.adapter import Adapter
from glimmer.adapters.lora import read_lora
from glimmer.adapters.prefix import read_official_prefix, read_peft_prefix
from glimmer.architecture import Architecture
from glimmer.checkpoints.folder import CONFIG, open_shard
from glimmer.checkpoints.json_file import read_object
from glimmer.errors import (
    ModelNotFoundError,
    UnknownFormatError,
    UnsupportedArchitectureError,
)
from glimmer.families import Family

PEFT_CONFIG = "adapter_config.json"
_PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def read_adapter(
    path: str | os.PathLike[str], family: Family, architecture: Architecture
) -> Adapter:
    """The adapter in a folder, for a network: PEFT's LoRA or prefix tuning, or an official
    checkpoint of P-Tuning v2.

    Raises:
        ModelNotFoundError: no such folder.
        UnknownFormatError: there is no adapter in it.
        MalformedCheckpointError: it does not fit the network, or is damaged.
        UnsupportedArchitectureError: it is of a kind that is not supported.
        UnsafeCheckpointError: a file asks to run code.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ModelNotFoundError(
            f"There is no folder {path}. An adapter is the folder that the training wrote, with "
            f"{PEFT_CONFIG} (PEFT) or {CONFIG} (P-Tuning v2) in it."
        )
    if not (path / PEFT_CONFIG).is_file():
        # The official configs of models have pre_seq_len as well, without a value.
        if (path / CONFIG).is_file() and read_object(path / CONFIG).get("pre_seq_len") is not None:
            return read_official_prefix(path, family, architecture)
        raise UnknownFormatError(
            f"{path} holds no adapter: neither {PEFT_CONFIG} (PEFT) nor a {CONFIG} with "
            "pre_seq_len (P-Tuning v2). Give the folder that the training wrote, not the model's."
        )
    config = read_object(path / PEFT_CONFIG)
    file = next((f for name in _PEFT_WEIGHTS if (f := path / name).is_file()), None)
    if file is None:
        raise UnknownFormatError(
            f"{path} has {PEFT_CONFIG}, but neither {' nor '.join(_PEFT_WEIGHTS)}: the training "
            "has not saved its weights there."
        )
    kind = config.get("peft_type")
    if kind == "LORA":
        return read_lora(path, config, open_shard(file), family, architecture)
    if kind == "PREFIX_TUNING":
        return read_peft_prefix(path, config, open_shard(file), family, architecture)
    raise UnsupportedArchitectureError(
        f"{path} is an adapter of PEFT's kind {kind!r:.40}; supported are LORA and PREFIX_TUNING."
    )

"""A checkpoint of any layout becomes a transformers model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from glimmer.catalogue import find_file
from glimmer.checkpoints import Checkpoint, PackedCheckpoint, open_checkpoint
from glimmer.checkpoints.json_file import read_object
from glimmer.errors import InvalidParameterError, OutOfMemoryError
from glimmer.export import eos_token_ids, pad_token_id
from glimmer.families import Family
from glimmer.families.exporter import FolderFormat
from glimmer.families.weight_map import Layout
from glimmer.hf import chatglm  # noqa: F401  (registers its classes)
from glimmer.hf.devices import find_device, memory_errors
from glimmer.hf.prefix import PREFIX_TENSORS, attach_prefix, read_prefix
from glimmer.hf.tensors import FLOAT_DTYPES, LazyTensor, dtype_name, float_dtype, to_tensor
from glimmer.model_source import ModelSource
from glimmer.native import available_memory
from glimmer.packed_source import PackedSource
from glimmer.relayout import RelaidTensor, Relayout

_SMALLER = (
    "Another dtype (--weights bfloat16, int8, int4) or a quantization_config makes them smaller; "
    'device_map="auto" spreads them over devices and disk.'
)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | int | torch.device | None = None,
    device_map: Any = None,
    family: str | None = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The model of a checkpoint, or of a release by its name, in evaluation mode.

    ``dtype`` "auto" is the type that most weights are stored in; integers, also a GGUF file's
    blocks, become float16. ``device`` puts the whole model there, ``device_map`` ("auto", or where
    each module goes) is transformers' own, as are ``quantization_config`` (bitsandbytes, torchao),
    ``attn_implementation`` and the ``options`` of ``from_pretrained``, such as ``max_memory`` and
    ``offload_folder``. A trained prefix (P-Tuning v2) is attached, in float32.

    Raises:
        ModelNotFoundError: no such path or release.
        CheckpointError: the files are at fault; the message says how.
        OutOfMemoryError: the weights do not fit into what is free on the device.
        InvalidParameterError: a value that is not allowed, or a packed folder, which only the
            engine reads.
    """
    if "torch_dtype" in options:
        raise InvalidParameterError(
            f"torch_dtype is called dtype here: dtype={options['torch_dtype']!r}."
        )
    if device is not None:
        if device_map is not None:
            raise InvalidParameterError(
                f"device ({device!r}) and device_map ({device_map!r}) both say where the model "
                "goes. Give one of them."
            )
        device = device_map = find_device(device)
    options |= {"device_map": device_map, "quantization_config": quantization_config}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    found, _ = find_file(path)
    with open_checkpoint(found) as checkpoint:
        source = source_of(checkpoint, family)
        wanted = float_dtype(stored_dtype(source) if dtype == "auto" else dtype)
        if quantization_config is None and (device_map is None or device is not None):
            _check_memory(source, wanted, torch.device(device or "cpu"))
        exporter = source.family.exporter
        if exporter is None:
            raise InvalidParameterError(
                f"transformers has no class for models of the {source.family.name} family."
            )
        form = exporter.folder
        config = _config(source, form, wanted)
        with memory_errors(f"The weights of {found} do not fit. {_SMALLER}"):
            model = _fill(config, _weights(source, form, wanted), wanted, options)
        model.name_or_path = model.config.name_or_path = str(found)
        model.generation_config = _generation_config(checkpoint, model.generation_config)
        if source.architecture.prefix_length:
            encoder = source.layout.prefix_encoder
            assert encoder is not None, "ModelSource has read the prefix"
            prefix = encoder.embedding.removesuffix(PREFIX_TENSORS[0])
            attach_prefix(model, read_prefix(checkpoint, prefix))
    return model


def source_of(checkpoint: Checkpoint, family: str | None) -> ModelSource:
    """Raises InvalidParameterError for a packed folder, and as ``ModelSource``."""
    if isinstance(checkpoint, PackedCheckpoint):
        raise PackedSource.refusal(checkpoint)
    return ModelSource(checkpoint, family)


def layout_of(family: Family, form: FolderFormat) -> Layout:
    """The names of a model's tensors in transformers."""
    layout = family.weight_map.layout(form.layout)
    assert layout is not None, f"the family names a layout {form.layout!r} that is in no table"
    return layout


def stored_dtype(source: ModelSource) -> str:
    """The float type of most weights; integers count as float16, as ``export`` has it."""
    counts: Counter[str] = Counter()
    stored = source.dtypes
    for name, shape in source.shapes.items():
        kind = stored[name] if stored[name] in FLOAT_DTYPES else "float16"
        counts[kind] += torch.Size(shape).numel()
    return counts.most_common(1)[0][0]


def _check_memory(source: ModelSource, dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cuda":
        free: int | None = torch.cuda.mem_get_info(device)[0]
    elif device.type in ("cpu", "mps"):  # which share one memory
        free = available_memory()
    else:
        return
    needed = source.architecture.num_parameters * dtype.itemsize
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"The weights of {source.checkpoint.path} take {needed / 2**30:.1f} GiB as "
            f"{dtype_name(dtype)}, but {free / 2**30:.1f} GiB are free on {device}. {_SMALLER}"
        )


def _config(source: ModelSource, form: FolderFormat, dtype: torch.dtype) -> Any:
    checkpoint, family = source.checkpoint, source.family
    tokenizer = family.tokenizer(checkpoint) if family.has_tokenizer(checkpoint) else None
    ends = eos_token_ids(source, tokenizer)
    values = form.config(
        replace(source.architecture, prefix_length=0),  # it is attached to the finished model
        dtype=dtype_name(dtype),
        eos_token_ids=ends,
        pad_token_id=pad_token_id(source, ends),
    )
    values.pop("_name_or_path", None)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _weights(
    source: ModelSource, form: FolderFormat, dtype: torch.dtype
) -> Mapping[str, LazyTensor]:
    layout = layout_of(source.family, form)
    quantized_as = dtype_name(dtype)
    relayout = Relayout(
        source,
        layout,
        lambda _name, _shape, stored: stored if stored in FLOAT_DTYPES else quantized_as,
        names=[name for name in source.shapes if "prefix_" not in name],
        copies=False,  # tied weights are one tensor
    )

    def read(tensor: RelaidTensor) -> torch.Tensor:
        return to_tensor(relayout.read(tensor), tensor.dtype, tensor.shape)

    return {
        tensor.name: LazyTensor(FLOAT_DTYPES[tensor.dtype], tensor.shape, partial(read, tensor))
        for tensor in relayout.tensors
    }


def _fill(
    config: Any, weights: Mapping[str, LazyTensor], dtype: torch.dtype, options: dict[str, Any]
) -> PreTrainedModel:
    """A model with these weights.

    ``from_pretrained`` makes it on the meta device and takes each weight when its turn comes,
    quantises it, moves it to its device and lets it go: so quantizers, device maps and offloading
    work as they do for a folder in transformers' own layout, and nothing is held twice. It reads
    files by slices that load when they are indexed; a ``state_dict`` of such slices spares writing
    that folder first.
    """
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        output_loading_info=True,
        **options,
    )
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    assert not wrong, f"the layout does not fit {model_class.__name__}: {wrong}"
    return model


def _generation_config(checkpoint: Checkpoint, own: GenerationConfig) -> GenerationConfig:
    """That of the checkpoint's file, if there is one, with the end tokens of ``own`` too: the files
    of some releases tell one of several."""
    file = checkpoint.file("generation_config.json")
    if file is None:
        return own
    found = GenerationConfig.from_dict(read_object(file))
    ends = dict.fromkeys([*_ids(own.eos_token_id), *_ids(found.eos_token_id)])
    found.eos_token_id = list(ends) or None
    if found.pad_token_id is None:
        found.pad_token_id = own.pad_token_id
    return found


def _ids(given: int | list[int] | None) -> list[int]:
    if given is None:
        return []
    return given if isinstance(given, list) else [given]

"""A model made ready to be tuned: what is added to it, what of it is trained.

Which layers there are is read from the model itself, whatever class it is of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from glimmer.errors import InvalidParameterError
from glimmer.training import choices
from glimmer.training.config import FinetuneConfig
from glimmer.training.finetuning.devices import local_gpu, on_processor
from glimmer.training.text import TextSide

_ALL_LINEAR = "all-linear"
_PREFIX_PART = "prefix_encoder."


@dataclass(frozen=True, slots=True)
class ParameterCount:
    total: int
    trained: int


def load_base(config: FinetuneConfig, text: TextSide) -> PreTrainedModel:
    """The model to start from, in the precision that the method asks for."""
    from glimmer import hf

    options: dict[str, Any] = {"dtype": base_dtype(config, text), "family": config.family}
    if config.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_compute_dtype(config),
        )
        if (gpu := local_gpu(config)) is not None:
            options["device_map"] = {"": gpu}  # 4-bit weights stay where they were loaded
    return hf.load(text.path, **options)


def base_dtype(config: FinetuneConfig, text: TextSide) -> str:
    """What weights are held in, as ``hf.load`` takes it."""
    return choices.base_dtype(
        config.method, config.dtype, text.stored_dtype, on_processor=on_processor(config)
    )


def _compute_dtype(config: FinetuneConfig) -> torch.dtype:
    """What 4-bit weights are multiplied in."""
    by_precision = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if config.mixed_precision in by_precision:
        return by_precision[config.mixed_precision]
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return torch.float32 if on_processor(config) else torch.bfloat16


def lora_config(config: FinetuneConfig, model: PreTrainedModel) -> Any:
    """PEFT's config of LoRA and QLoRA.

    Raises:
        InvalidParameterError: a target that is no linear layer of the model.
    """
    from peft import LoraConfig

    alpha = 2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha

    def settings(targets: list[str]) -> Any:
        return LoraConfig(
            r=config.lora_rank,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        )

    if config.lora_targets != [_ALL_LINEAR]:
        _check_targets(config.lora_targets, model)
        if config.objective == "dpo":
            _refuse_head(config.lora_targets, model)
        return settings(config.lora_targets)
    return settings(_linear_targets(settings(_linear_names(model)), model))


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Every linear layer but the one that makes logits."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def _linear_targets(settings: Any, model: PreTrainedModel) -> list[str]:
    """Those of the layers in ``settings`` that PEFT adapts under their own names.

    In a mixture of experts it takes the names of dense layers for those of the experts, as they
    once were called, and would adapt each expert and the router in their place.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    convert_peft_config_for_transformers(settings, model, None)
    return sorted(settings.target_modules)


def _check_targets(targets: list[str], model: PreTrainedModel) -> None:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            names = sorted({name.rpartition(".")[2] for name in linear})
            raise InvalidParameterError(
                f"lora_targets names {target!r}, but no linear layer of this model is called so; "
                f"there are {', '.join(names)} (or {_ALL_LINEAR})."
            )


def _refuse_head(targets: list[str], model: PreTrainedModel) -> None:
    """TRL multiplies by the head's own weights, past any adapter of it."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    for target in targets:
        if any(name == target or name.endswith(f".{target}") for name in names):
            raise InvalidParameterError(
                f"lora_targets names {target!r}, the layer that makes logits, which dpo does not "
                "train. Leave it out."
            )


def add_lora(config: FinetuneConfig, model: PreTrainedModel) -> Any:
    """The model with LoRA's matrices, the only weights that train. They begin as no change."""
    from peft import get_peft_model

    torch.manual_seed(config.seed)
    return get_peft_model(model, lora_config(config, model))


def add_ptuning(config: FinetuneConfig, model: PreTrainedModel) -> None:
    """P-Tuning v2: a prefix of keys and values for every layer, the only weights that train."""
    from glimmer.hf import prefix

    torch.manual_seed(config.seed)
    prefix.add_prefix(
        model, config.prefix_tokens, config.prefix_projection, config.prefix_hidden_size
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_PREFIX_PART in name)


def train_last_layers(model: PreTrainedModel, count: int) -> None:
    """Only the weights of the last ``count`` layers train.

    Raises:
        InvalidParameterError: the model has fewer.
    """
    layers = decoder_layers(model)
    if count > len(layers):
        raise InvalidParameterError(
            f"trained_layers is {count}, but the model has {len(layers)} layers; method: full "
            "trains all of it."
        )
    model.requires_grad_(False)
    for layer in list(layers)[-count:]:
        layer.requires_grad_(True)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of the network's layers: the longest that lies in no other list."""
    lists: list[nn.ModuleList] = []
    inside: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            if not any(name.startswith(f"{outer}.") for outer in inside):
                lists.append(module)
            inside.add(name)
    return max(lists, key=len)


def prepare(config: FinetuneConfig, model: PreTrainedModel) -> Any:
    """The model as it is trained on texts (LoRA of DPO is added by its trainer)."""
    if config.gradient_checkpointing:
        # Weights that do not train give inputs without gradients; a layer that is computed again
        # needs one that has.
        model.enable_input_require_grads()
    if config.method in ("lora", "qlora"):
        return add_lora(config, model) if config.objective == "sft" else model
    if config.method == "ptuning":
        add_ptuning(config, model)
    elif config.method == "freeze":
        train_last_layers(model, config.trained_layers)
    else:
        model.requires_grad_(True)
    return model


def count_parameters(model: nn.Module) -> ParameterCount:
    """Weights of the model, and those that train; a byte of 4-bit ones counts as the two it is."""
    total = trained = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if parameter.__class__.__name__ == "Params4bit":
            count *= 2
        total += count
        trained += count if parameter.requires_grad else 0
    return ParameterCount(total, trained)

"""What a fine-tuning run is told, as pydantic checks it: YAML, and flags that override it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from glimmer.errors import InvalidParameterError, MissingExtraError, ModelNotFoundError
from glimmer.training.choices import Dtype, Method, Objective

# Where a config names none: small networks of weights that are added learn with larger steps than
# the model's own. DPO moves a model that can already answer, and starts at a tenth of that.
LEARNING_RATES: Mapping[Method, float] = {
    "lora": 2e-4,
    "qlora": 2e-4,
    "ptuning": 5e-3,
    "freeze": 5e-5,
    "full": 1e-5,
}
DPO_SHARE = 0.1


class FinetuneConfig(BaseModel):
    """Every key of a fine-tuning run. Paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(description="What is tuned: a folder, a GGUF file or a release.")
    data: list[Path] = Field(min_length=1, description="Training files, one or a list.")
    output: Path = Field(description="The folder that is written.")
    family: str | None = Field(None, description="Names the family instead of recognising it.")
    data_format: str = Field("auto", description="Of the files, as `glimmer data check` names it.")

    prompt_column: str = Field("prompt", description="What a prompt-response file calls prompts.")
    response_column: str = Field("response", description="What it calls the answers.")
    history_column: str = Field("history", description="What it calls the rounds before them.")

    method: Method = Field("lora", description="What is trained; see above.")
    objective: Objective = Field(
        "sft", description="sft: the answers; dpo: to prefer them to the rejected ones."
    )
    max_length: int = Field(2048, ge=8, description="Longest text in tokens.")
    too_long: Literal["cut", "skip"] = Field(
        "cut", description="What becomes of longer ones: they lose their end, or are left out."
    )
    packing: bool = Field(
        False, description="Several texts in one row, none of which sees another (sft)."
    )

    eval_data: list[Path] = Field(
        default_factory=list, description="Files to evaluate on, which are not trained on."
    )
    eval_share: float = Field(
        0.0, ge=0, lt=1, description="Share of the training examples to hold out instead."
    )
    eval_every: int | None = Field(
        None, ge=1, description="Steps between evaluations; by default one per epoch."
    )

    lora_rank: int = Field(8, ge=1, description="Rank of the two matrices that LoRA adds.")
    lora_alpha: float | None = Field(
        None, gt=0, description="What they add is scaled by alpha / rank; by default 2."
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of LoRA's inputs (sft).")
    lora_targets: list[str] = Field(
        default_factory=lambda: ["all-linear"],
        min_length=1,
        description="Endings of module names; all-linear: all of attention and MLP.",
    )

    prefix_tokens: int = Field(128, ge=1, description="Tokens of P-Tuning's prefix.")
    prefix_projection: bool = Field(
        False, description="Whether the prefix comes of a two-layer network, as large ones do."
    )
    prefix_hidden_size: int | None = Field(
        None, ge=1, description="Width of that network; by default the model's."
    )

    trained_layers: int = Field(2, ge=1, description="freeze: how many of the last layers train.")
    dpo_beta: float = Field(0.1, gt=0, description="How closely DPO stays at the old model.")

    learning_rate: float | None = Field(
        None,
        gt=0,
        description="At its peak; by default lora, qlora 2e-4, ptuning 5e-3, freeze 5e-5, full "
        "1e-5, a tenth of that for dpo.",
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the data.")
    max_steps: int | None = Field(None, ge=1, description="Ends after so many steps instead.")
    batch_size: int = Field(1, ge=1, description="Rows per process and pass.")
    gradient_accumulation: int = Field(8, ge=1, description="Passes per step.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warmup."
    )
    warmup: float = Field(
        0.03, ge=0, description="Steps in which it rises; below 1, a share of all steps."
    )
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are cut to this.")
    seed: int = Field(42, ge=0, description="Of weights that are added, order and dropout.")

    device: Literal["auto", "cpu"] = Field(
        "auto", description="auto takes a GPU if there is one, as Accelerate sees it."
    )
    dtype: Literal["auto", Dtype] = Field(
        "auto",
        description="What weights are held in; auto keeps what is stored, but takes float32 for "
        "freeze and full, and on a processor for float16 and integers.",
    )
    save_dtype: Literal["auto", Dtype] = Field(
        "auto", description="freeze, full: what the result is written in; auto as it was trained."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="Computes in fewer bits than the weights are held in."
    )
    gradient_checkpointing: bool = Field(
        False, description="Computes activations twice rather than keep them."
    )
    fsdp: bool = Field(
        False, description="Shards weights over the processes (FSDP2); else each holds all (DDP)."
    )
    deepspeed: Path | None = Field(None, description="A DeepSpeed config, handed to Accelerate.")

    save_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints; by default one per epoch."
    )
    keep_checkpoints: int = Field(2, ge=1, description="How many of the last are kept.")
    tensorboard: bool = Field(True, description="Writes OUTPUT/tensorboard.")

    guard: bool = Field(True, description="Asks the forgetting guard's questions.")
    guard_prompts: list[str] = Field(
        default_factory=list, description="Its questions; by default a small set of ours."
    )
    guard_max_tokens: int = Field(32, ge=1, description="Longest answer to one of them.")
    guard_threshold: float = Field(
        1.0, gt=0, description="Warns when the old answers lose more than so many nats per token."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        """A single file, module or prompt may stand without the brackets of a list."""
        if not isinstance(values, Mapping):
            return values
        lists = ("data", "eval_data", "lora_targets", "guard_prompts")
        made = {
            key: [value] if key in lists and isinstance(value, str | Path) else value
            for key, value in values.items()
        }
        if made.get("mixed_precision") is False:
            made["mixed_precision"] = "no"  # which YAML 1.1 takes for false
        return made

    @model_validator(mode="after")
    def _fits_together(self) -> FinetuneConfig:
        if self.eval_data and self.eval_share:
            raise ValueError("give eval_data or eval_share, not both")
        if self.eval_every and not (self.eval_data or self.eval_share):
            raise ValueError("eval_every needs eval_data or eval_share, which tell on what")
        if both := {x.resolve() for x in self.data} & {x.resolve() for x in self.eval_data}:
            raise ValueError(f"{min(both)} is in data and in eval_data: it would be trained on")
        if len(self.lora_targets) > 1 and "all-linear" in self.lora_targets:
            raise ValueError("lora_targets has all-linear and others, which are among all")
        if self.packing and self.objective == "dpo":
            raise ValueError("packing is for sft: dpo compares texts row by row")
        if self.packing and self.method == "ptuning":
            raise ValueError("packing and ptuning exclude each other: a row has one prefix")
        if self.fsdp and self.method in ("ptuning", "qlora"):
            raise ValueError(
                f"fsdp is not for {self.method}: what it trains is small, so each process can "
                "hold it all (leave fsdp out)"
            )
        if self.fsdp and self.deepspeed is not None:
            raise ValueError("fsdp and deepspeed exclude each other")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """``learning_rate``, or the method's own."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LEARNING_RATES[self.method] * (DPO_SHARE if self.objective == "dpo" else 1.0)


def load_config(file: Path | None = None, given: Mapping[str, Any] | None = None) -> FinetuneConfig:
    """The values of ``file``, unless ``given`` has others.

    Raises:
        ModelNotFoundError: there is no such file.
        InvalidParameterError: no YAML mapping, an unknown key, or a value that is not allowed.
        MissingExtraError: PyYAML is not installed.
    """
    values = {} if file is None else read_yaml(file)
    values |= given or {}
    where = "the settings" if file is None else str(file)
    for key in values:
        if key not in FinetuneConfig.model_fields:
            raise InvalidParameterError(f"There is no setting {key!r}{_nearest(str(key))}")
    try:
        return FinetuneConfig(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise InvalidParameterError(
                f"{where} lack {key!r}: {FinetuneConfig.model_fields[key].description}"
            ) from None
        said = first["msg"].removeprefix("Value error, ")
        if not key:
            raise InvalidParameterError(f"In {where}, {said}.") from None
        raise InvalidParameterError(
            f"In {where}, {key} is {first['input']!r:.60}, which is not allowed: {said}."
        ) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping; raises as ``load_config``."""
    if not file.is_file():
        raise ModelNotFoundError(f"There is no configuration file {file}.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidParameterError(f"{file} is not UTF-8 text: {error}.") from error
    values = parse_yaml(text, str(file))
    if not isinstance(values, dict):
        raise InvalidParameterError(
            f"{file} must hold keys and values (model: ...), but it is a {type(values).__name__}."
        )
    return values


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML; raises as ``load_config``."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError.of("PyYAML") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidParameterError(f"{where} is not YAML: {error}") from error


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, FinetuneConfig.model_fields, n=1, cutoff=0.5)
    if near:
        return f": did you mean {near[0]!r}?"
    return f". The settings are {', '.join(FinetuneConfig.model_fields)}."

"""What a pre-training run is told, as pydantic checks it: from YAML, and flags that override."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from glimmer.errors import InvalidParameterError
from glimmer.training.blank_infilling import Kind, Objective
from glimmer.training.config import read_yaml

Preset = Literal["tiny", "5M", "10M"]


class Size(BaseModel):
    """Of a network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int
    hidden: int
    heads: int
    inner: int


# Parameters with the vocabulary that goes with them, 2000, 4000 and 8000 tokens: 0.4, 5.2 and
# 10.0 million.
PRESETS: Mapping[Preset, Size] = MappingProxyType(
    {
        "tiny": Size(layers=3, hidden=96, heads=4, inner=192),
        "5M": Size(layers=4, hidden=288, heads=9, inner=1152),
        "10M": Size(layers=6, hidden=320, heads=10, inner=1280),
    }
)


# What a value brings along, which cannot be given beside it: another than by default, for a config
# that a report has told in full is to be allowed.
_OWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "base": ("preset", "layers", "hidden", "heads", "inner", "max_length", "tokenizer",
                 "vocab_size", "character_coverage"),
        "tokenizer": ("vocab_size", "character_coverage"),
    }
)  # fmt: skip


class PretrainConfig(BaseModel):
    """Every key of a pre-training run. Paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: list[Path] = Field(
        min_length=1,
        description="Texts: .jsonl files with a document a line, other files with one each, or "
        "folders of both.",
    )
    output: Path = Field(description="The folder that is written.")
    text_field: str = Field("text", description="What .jsonl files call the text.")
    held_out: list[Path] = Field(
        default_factory=list, description="Texts to measure on, which are not trained on."
    )
    held_out_share: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Share of the documents to hold out, where held_out names none.",
    )
    held_out_rows: int = Field(64, ge=1, description="Rows of held-out text to measure on.")

    base: str | None = Field(
        None,
        description="A model to go on with, a folder or release: ChatGLM-6B, or one made by this.",
    )
    tokenizer: Path | None = Field(
        None, description="A folder with ice_text.model; by default one is trained on the texts."
    )
    vocab_size: int = Field(4000, description="Tokens of a tokenizer that is trained.")
    character_coverage: float = Field(
        0.9995,
        gt=0,
        le=1,
        description="Share of the characters that get a token of their own; others are bytes.",
    )

    preset: Preset = Field(
        "5M", description="Size of a new network: tiny, 5M or 10M; the next four override it."
    )
    layers: int | None = Field(None, ge=1, description="Its layers.")
    hidden: int | None = Field(None, ge=8, description="Its channels: heads times a multiple of 4.")
    heads: int | None = Field(None, ge=1, description="Its heads of attention.")
    inner: int | None = Field(None, ge=8, description="The channels inside its MLP.")
    max_length: int | None = Field(
        None,
        ge=16,
        description="Its longest text in tokens; by default 2048, or row_length if that is more.",
    )

    mix: dict[Kind, float] = Field(
        default_factory=lambda: dict(Objective().mix),
        description="Proportions of what is taken out of texts: short spans (mask), sentences "
        "(smask), the end (gmask).",
    )
    masked_share: float = Field(
        0.15, description="mask, smask: share of the tokens that are taken out."
    )
    mean_span_length: float = Field(
        3.0, description="mask: mean of the Poisson distribution of their lengths."
    )
    gmask_share: tuple[float, float] = Field(
        (0.5, 1.0), description="gmask: smallest and largest share of a text."
    )
    shuffle: bool = Field(True, description="Whether spans are predicted in random order.")

    row_length: int = Field(512, ge=16, description="Tokens of a row, into which texts are packed.")
    batch_size: int = Field(8, ge=1, description="Rows per process and pass.")
    gradient_accumulation: int = Field(1, ge=1, description="Passes per step.")
    steps: int = Field(1000, ge=1, description="Steps of the optimizer.")
    learning_rate: float = Field(1e-3, gt=0, description="At its peak.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine",
        description="How it falls after the warmup: cosine, linear, or constant for not at all.",
    )
    warmup: float = Field(
        0.05, ge=0, description="Steps in which it rises; below 1, a share of all steps."
    )
    weight_decay: float = Field(0.1, ge=0, description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are cut to this.")
    seed: int = Field(42, ge=0, description="Of weights, order and blanks.")
    device: Literal["auto", "cpu"] = Field("auto", description="auto takes a GPU if there is one.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="no, bf16 or (on a GPU) fp16: what is computed in; weights are float32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Computes activations twice rather than keep them."
    )

    log_every: int = Field(
        10,
        ge=1,
        description="Steps between two losses in the log; one is told with each checkpoint, too.",
    )
    eval_every: int | None = Field(
        None, ge=1, description="Steps between measurements; by default one at the end."
    )
    save_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints; by default a tenth of all."
    )
    keep_checkpoints: int = Field(2, ge=1, description="How many of the last are kept.")
    tensorboard: bool = Field(False, description="Writes OUTPUT/tensorboard.")

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        """A single path may stand without the brackets of a list."""
        if not isinstance(values, Mapping):
            return values
        made = {
            key: [value] if key in ("data", "held_out") and isinstance(value, str | Path) else value
            for key, value in values.items()
        }
        if made.get("mixed_precision") is False:
            made["mixed_precision"] = "no"  # which YAML 1.1 takes for false
        return made

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainConfig:
        for name, own in _OWN.items():
            given = [key for key in own if self._is_own(key)]
            if getattr(self, name) and given:
                raise ValueError(f"{name} has its own {', '.join(given)}: leave one of them out")
        if self.held_out and self.held_out_share and self._is_own("held_out_share"):
            raise ValueError("give held_out or held_out_share, not both")
        if self.eval_every and not self.held_out and not self.held_out_share:
            raise ValueError(
                "eval_every measures on texts that are held out, but held_out_share is 0 and "
                "held_out names none"
            )
        if self.max_length is not None and self.row_length > self.max_length:
            raise ValueError(
                f"row_length ({self.row_length}) may not exceed max_length ({self.max_length})"
            )
        size = self.size
        if size.hidden % size.heads or size.hidden // size.heads % 4:
            raise ValueError(
                "hidden must be heads times a multiple of 4, since half of each head turns by one "
                f"position and half by the other, but hidden is {size.hidden} and heads is "
                f"{size.heads}"
            )
        _ = self.objective
        return self

    def _is_own(self, key: str) -> bool:
        """Whether a value is another than by default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    @property
    def size(self) -> Size:
        """Of a new network."""
        given = {name: getattr(self, name) for name in Size.model_fields}
        return PRESETS[self.preset].model_copy(
            update={name: value for name, value in given.items() if value is not None}
        )

    @property
    def objective(self) -> Objective:
        """Raises InvalidParameterError."""
        return Objective(
            mix=self.mix,
            masked_share=self.masked_share,
            mean_span_length=self.mean_span_length,
            gmask_share=self.gmask_share,
            shuffle=self.shuffle,
        )


def load_pretrain_config(
    file: Path | None = None, given: Mapping[str, Any] | None = None
) -> PretrainConfig:
    """The values of ``file``, unless ``given`` has others.

    Raises:
        ModelNotFoundError: there is no such file.
        InvalidParameterError: no YAML mapping, an unknown key, or a value that is not allowed.
        MissingExtraError: PyYAML is not installed.
    """
    values = ({} if file is None else read_yaml(file)) | dict(given or {})
    where = "the settings" if file is None else str(file)
    names = PretrainConfig.model_fields
    if unknown := [key for key in values if key not in names]:
        raise InvalidParameterError(
            f"{where}: there is no setting {unknown[0]!r}. The settings are {', '.join(names)}."
        )
    try:
        return PretrainConfig(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "missing":
            said = f"it is missing: {names[key].description}".rstrip(".")
        raise InvalidParameterError(f"In {where}, {key + ': ' if key else ''}{said}.") from None

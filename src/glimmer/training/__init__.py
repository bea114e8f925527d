"""Fine-tuning and pre-training (extra "train"), on Transformers, PEFT, TRL and Accelerate.

Importing this imports no torch: a name's module is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glimmer.training.config import FinetuneConfig, load_config
    from glimmer.training.finetuning.run import Finetuned, finetune
    from glimmer.training.pretraining.config import PretrainConfig
    from glimmer.training.pretraining.run import Pretrained, pretrain

_MODULES = {
    "FinetuneConfig": "glimmer.training.config",
    "Finetuned": "glimmer.training.finetuning.run",
    "PretrainConfig": "glimmer.training.pretraining.config",
    "Pretrained": "glimmer.training.pretraining.run",
    "finetune": "glimmer.training.finetuning.run",
    "load_config": "glimmer.training.config",
    "pretrain": "glimmer.training.pretraining.run",
}
__all__ = [
    "FinetuneConfig",
    "Finetuned",
    "PretrainConfig",
    "Pretrained",
    "finetune",
    "load_config",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from glimmer.errors import MissingExtraError

    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("glimmer"):
            raise
        raise MissingExtraError.of(error.name) from error

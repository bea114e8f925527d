"""The bridge to PyTorch and Transformers (extra "train"): any checkpoint as a transformers model.

Importing it registers ChatGLM-6B with transformers' Auto classes (``glimmer.hf.chatglm``) and the
attention of trained prefixes (``glimmer.hf.prefix``).
"""

from __future__ import annotations

from glimmer.errors import MissingExtraError
from glimmer.hf.quiet import quiet_logs

with quiet_logs():
    try:
        import accelerate  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError.of(error.name) from error

    from glimmer.hf.loading import load
    from glimmer.hf.tokenizer import load_tokenizer

__all__ = ["load", "load_tokenizer"]

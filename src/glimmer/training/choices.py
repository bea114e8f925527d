"""What a fine-tuning run is told in a word, and what ``dtype: auto`` stands for. Knows no torch."""

from __future__ import annotations

from typing import Literal

Method = Literal["lora", "qlora", "ptuning", "freeze", "full"]
Objective = Literal["sft", "dpo"]
Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "gpu"]


def base_dtype(
    method: Method, wanted: Literal["auto"] | Dtype, stored: str, *, on_processor: bool
) -> Literal["auto"] | Dtype:
    """What a network's weights are held in, of which most are ``stored`` so; "auto" keeps them, and
    makes float16 of integers."""
    if wanted != "auto":
        return wanted
    if method in ("freeze", "full"):
        return "float32"  # steps of 1e-5 vanish in the rounding of bfloat16
    if on_processor and stored not in ("float32", "bfloat16"):
        return "float32"  # processors compute float16 slowly, and it overflows in training
    return "auto"

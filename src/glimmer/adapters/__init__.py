"""Adapters: what fine-tuning adds to a network, read from files, by canonical weight name.

Knows LoRA as PEFT writes it and trained prefixes, official ones (P-Tuning v2) and PEFT's. Imports
no torch.
"""

from glimmer.adapters.adapter import Adapter, LowRank
from glimmer.adapters.reading import read_adapter

__all__ = ["Adapter", "LowRank", "read_adapter"]

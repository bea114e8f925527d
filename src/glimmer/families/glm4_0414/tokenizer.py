"""GLM-4-0414's tokenizer is GLM-4's."""

from glimmer.families.glm4.tokenizer import has_tokenizer, load_tokenizer, stop_token_ids

__all__ = ["has_tokenizer", "load_tokenizer", "stop_token_ids"]

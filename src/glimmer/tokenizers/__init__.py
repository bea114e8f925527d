"""Text to token ids and back. Knows no chat and no family."""

from glimmer.tokenizers.byte_level_bpe import ByteLevelBPETokenizer
from glimmer.tokenizers.detokenizer import Detokenizer
from glimmer.tokenizers.gguf_bpe import byte_level_bpe_from_gguf
from glimmer.tokenizers.tokenizer import Tokenizer

__all__ = ["ByteLevelBPETokenizer", "Detokenizer", "Tokenizer", "byte_level_bpe_from_gguf"]

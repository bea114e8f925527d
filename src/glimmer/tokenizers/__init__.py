"""Text to token ids and back. Knows no chat and no family."""

from glimmer.tokenizers.byte_level_bpe import ByteLevelBPETokenizer
from glimmer.tokenizers.detokenizer import ByteDetokenizer, Detokenizer, decode_all
from glimmer.tokenizers.gguf_bpe import byte_level_bpe_from_gguf
from glimmer.tokenizers.gguf_sentence_piece import model_from_gguf
from glimmer.tokenizers.ranked_bpe import RankedBPETokenizer, read_ranks
from glimmer.tokenizers.sentence_piece import SentencePieceTokenizer, load_model
from glimmer.tokenizers.tokenizer import Tokenizer
from glimmer.tokenizers.tokenizer_json import byte_level_bpe_from_json

__all__ = [
    "ByteDetokenizer",
    "ByteLevelBPETokenizer",
    "Detokenizer",
    "RankedBPETokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "byte_level_bpe_from_gguf",
    "byte_level_bpe_from_json",
    "decode_all",
    "load_model",
    "model_from_gguf",
    "read_ranks",
]

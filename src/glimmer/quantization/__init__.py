"""How weights are packed into bytes. Knows no file format and no network."""

from glimmer.quantization.schemes import SCHEMES, QuantScheme, dequantize, quantize

__all__ = ["SCHEMES", "QuantScheme", "dequantize", "quantize"]

"""Training data: files in, token ids and loss masks out. Knows no torch."""

from glimmer.training.data.encoding import (
    IGNORED,
    Encoded,
    EncodedPair,
    EncodingReport,
    TooLong,
    encode,
    encode_all,
    encode_pair,
    encode_pairs,
)
from glimmer.training.data.example import Example
from glimmer.training.data.forms import FORMATS, Columns
from glimmer.training.data.model import open_chat
from glimmer.training.data.reading import read
from glimmer.training.data.report import Problem, Report

__all__ = [
    "FORMATS",
    "IGNORED",
    "Columns",
    "Encoded",
    "EncodedPair",
    "EncodingReport",
    "Example",
    "Problem",
    "Report",
    "TooLong",
    "encode",
    "encode_all",
    "encode_pair",
    "encode_pairs",
    "open_chat",
    "read",
]

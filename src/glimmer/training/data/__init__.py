"""Training data: files in, token ids and loss masks out. Knows no torch."""

from glimmer.training.data.checking import FileCheck, check_file
from glimmer.training.data.converting import TARGETS, convert
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
    noting_problems,
)
from glimmer.training.data.example import Example
from glimmer.training.data.forms import FORMATS, Columns
from glimmer.training.data.model import open_chat
from glimmer.training.data.reading import read
from glimmer.training.data.report import Problem, Report

__all__ = [
    "FORMATS",
    "IGNORED",
    "TARGETS",
    "Columns",
    "Encoded",
    "EncodedPair",
    "EncodingReport",
    "Example",
    "FileCheck",
    "Problem",
    "Report",
    "TooLong",
    "check_file",
    "convert",
    "encode",
    "encode_all",
    "encode_pair",
    "encode_pairs",
    "noting_problems",
    "open_chat",
    "read",
]

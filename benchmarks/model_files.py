"""The files that a GGUF model is measured in."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import child
from glimmer.checkpoints import open_checkpoint


@contextmanager
def model_files(
    model: str, num_threads: int, with_peer: bool, progress: Callable[[str], None]
) -> Iterator[Mapping[str, str]]:
    """The model's file, and the same as Q4_0, the 4-bit type that llama.cpp is fastest at."""
    with open_checkpoint(Path(model)) as checkpoint:
        stored = Counter(tensor.dtype for tensor in checkpoint.tensors.values())
    dtype = stored.most_common(1)[0][0]
    files = {f"the {dtype} file": model}
    with tempfile.TemporaryDirectory() as folder:
        if with_peer and dtype != "q4_0":
            progress("Making a Q4_0 file")
            path = str(Path(folder) / "q4_0.gguf")
            arguments = ("--model", model, "--threads", str(num_threads), "--output", path)
            child.run("peers.llama_cpp", "requantize", *arguments)
            files["made q4_0"] = path
        yield files

"""What is wrong with a model's folder or with this machine, and how to mend it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glimmer import native
from glimmer.checkpoints import Checkpoint, open_checkpoint
from glimmer.checkpoints.folder import CONFIG
from glimmer.checkpoints.json_file import read_object
from glimmer.downloads import modelscope_cache
from glimmer.errors import GlimmerError
from glimmer.inspection import format_of
from glimmer.model_source import ModelSource
from glimmer.packed_source import open_source

Severity = Literal["ok", "note", "warning", "error"]
_LFS = b"version https://git-lfs"
_LOW_DISK_BYTES = 20 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    subject: str
    text: str
    """What was found and, unless all is well, what to do."""


def examine_machine() -> list[Finding]:
    """Processor, memory, disk and the settings that downloads obey."""
    findings = []
    try:
        isa = native.instruction_set()
        best = native.instruction_sets()[-1]
        if isa == best and best != "scalar":
            findings.append(Finding("ok", "processor", f"kernels for {isa}"))
        else:
            findings.append(
                Finding(
                    "warning",
                    "processor",
                    f"kernels for {isa}: slow. {_isa_advice(best)}",
                )
            )
    except GlimmerError as error:
        findings.append(Finding("error", "processor", str(error)))
    findings.append(Finding("ok", "cores", f"{native.physical_cores()}"))
    free = native.available_memory()
    if free is not None:
        findings.append(Finding("ok", "memory", f"{free / 2**30:.1f} GiB free"))
    from huggingface_hub import constants

    for name, folder in (
        ("Hugging Face cache", Path(constants.HF_HUB_CACHE)),
        ("ModelScope cache", modelscope_cache()),
    ):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        disk = shutil.disk_usage(existing).free
        enough = disk >= _LOW_DISK_BYTES
        advice = "" if enough else "; a 6B model in float16 takes 12 GiB: choose another disk"
        findings.append(
            Finding(
                "ok" if enough else "warning",
                name,
                f"{folder}: {disk / 2**30:.0f} GiB free{advice}",
            )
        )
        if not os.access(existing, os.W_OK):
            findings.append(Finding("error", name, f"{existing} cannot be written"))
    for variable in (
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "MODELSCOPE_ENDPOINT",
        "GLIMMER_ISA",
        "GLIMMER_PIN",
    ):
        if value := os.environ.get(variable):
            findings.append(Finding("note", variable, value))
    return findings


def _isa_advice(best: str) -> str:
    return f"Unset GLIMMER_ISA to use {best}." if best != "scalar" else "It has no AVX2."


def examine_model(path: Path, family: str | None = None) -> list[Finding]:
    """All that can be told of a model without running it. The first error may hide others."""
    findings = list(_files(path)) if path.is_dir() else []
    try:
        checkpoint = open_checkpoint(path)
    except GlimmerError as error:
        return [*findings, Finding("error", "files", str(error))]
    with checkpoint:
        findings.append(
            Finding("ok", "files", f"{format_of(checkpoint)}, {len(checkpoint.tensors)} tensors")
        )
        try:
            source = open_source(checkpoint, family)
        except GlimmerError as error:
            return [*findings, Finding("error", "network", str(error))]
        findings += _network(source)
        findings += _tokenizer(source)
    return findings


def _files(folder: Path) -> Iterator[Finding]:
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        if file.stat().st_size == 0:
            yield Finding("error", file.name, "is empty: download it again")
            continue
        with file.open("rb") as stream:
            head = stream.read(len(_LFS))
        if head == _LFS:
            yield Finding(
                "error",
                file.name,
                "is a Git LFS pointer, a few lines of text in place of the file: fetch the file "
                "with `git lfs pull`, or the model with `glimmer pull`",
            )
        elif file.suffix == ".incomplete":
            yield Finding(
                "warning", file.name, "a download broke off: run `glimmer pull` again to finish it"
            )
        elif file.suffix == ".py":
            yield Finding("note", file.name, "code of the model's own: not needed and never run")
    both = any(folder.glob("*.safetensors")) and any(folder.glob("*.bin"))
    if both:
        yield Finding("note", "weights", "in two formats: safetensors are read, .bin may go")


def _network(source: ModelSource) -> Iterator[Finding]:
    a = source.architecture
    yield Finding(
        "ok",
        "network",
        f"{source.family.name}, {a.num_parameters / 1e9:.2f}B parameters, {a.num_layers} layers, "
        f"context of {a.max_position}",
    )
    try:
        native.check_architecture(a)
    except GlimmerError as error:
        yield Finding("error", "network", str(error))
    left = source.unused_tensors
    if left:
        shown = ", ".join(sorted(left)[:3]) + (" ..." if len(left) > 3 else "")
        yield Finding("note", "tensors", f"{len(left)} are not part of the network: {shown}")
    dtypes = sorted(set(source.dtypes.values()))
    yield Finding("ok", "weights", ", ".join(dtypes))


def _tokenizer(source: ModelSource) -> Iterator[Finding]:
    family, checkpoint = source.family, source.checkpoint
    if not family.has_tokenizer(checkpoint):
        yield Finding(
            "warning",
            "tokenizer",
            "there is none: the model runs for token ids alone. Add the release's tokenizer files.",
        )
        return
    try:
        tokenizer = family.tokenizer(checkpoint)
    except GlimmerError as error:
        yield Finding("error", "tokenizer", str(error))
        return
    rows = source.architecture.vocab_size
    if tokenizer.vocab_size > rows:
        yield Finding(
            "error",
            "tokenizer",
            f"it has {tokenizer.vocab_size} tokens, but the network has rows for {rows}: it is "
            "another model's. Take both from one release.",
        )
    else:
        yield Finding("ok", "tokenizer", f"{tokenizer.vocab_size} tokens")
    yield from _end_tokens(checkpoint, list(family.stop_token_ids(tokenizer)))


def _end_tokens(checkpoint: Checkpoint, needed: list[int]) -> Iterator[Finding]:
    """Other programs end an answer by these numbers alone; Glimmer knows them by itself."""
    for name in (CONFIG, "generation_config.json"):
        file = checkpoint.file(name)
        if file is None:
            continue
        given: Any = read_object(file).get("eos_token_id")
        listed = given if isinstance(given, list) else [given] if given is not None else []
        if missing := [i for i in needed if i not in listed]:
            yield Finding(
                "note",
                name,
                f"eos_token_id lacks {', '.join(map(str, missing))}: other programs may not end an "
                f"answer there. Write {needed}.",
            )

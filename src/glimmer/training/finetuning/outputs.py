"""The result of a run, written as files that appear whole: an adapter, a prefix or a model."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from glimmer.catalogue import find_file
from glimmer.checkpoints import open_checkpoint
from glimmer.errors import InvalidParameterError, OutputError
from glimmer.training.config import FinetuneConfig
from glimmer.training.finetuning.report import REPORT
from glimmer.training.text import TextSide

CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
RUN_FILE = "run.json"
"""In the folder of checkpoints: what the run was begun with."""
_COPIED = ("generation_config.json", "LICENSE", "MODEL_LICENSE")


def check_result(config: FinetuneConfig, text: TextSide) -> None:
    """Refuses, before anything is trained, a result that could not be written.

    Raises:
        InvalidParameterError: a whole model of a family that is not written as a folder.
    """
    if config.method in ("freeze", "full") and text.family.exporter is None:
        raise InvalidParameterError(
            f"Models of the {text.family.name} family are not written as folders, and method "
            f"{config.method} makes a whole model. Use lora."
        )


def check_output(
    output: Path, inputs: Iterable[str | os.PathLike[str]], *, overwrite: bool, report: str = REPORT
) -> None:
    """Refuses a folder that a run may not write to; changes nothing. One without any file is free.

    Raises:
        InvalidParameterError: it holds something, and overwriting is not asked for; or what it
            holds is of no run, which leaves a ``report``; or ``inputs`` of the new run lie in it.
    """
    if not _holds_something(output):
        return
    if not overwrite:
        raise InvalidParameterError(
            f"{output} exists already. Continue its run with --resume, replace it with --force, or "
            "give another name."
        )
    if not any((output / name).is_file() for name in (report, f"{CHECKPOINTS}/{RUN_FILE}")):
        raise InvalidParameterError(
            f"{output} is not the folder of a run (it has no {report}), so that it is not "
            "replaced. Give another name, or delete it yourself."
        )
    whole = output.resolve()
    for given in inputs:
        if whole in (inside := Path(given).resolve(), *inside.parents):
            raise InvalidParameterError(
                f"{given} lies in {output}, which this run would replace. Give another output, or "
                "move it out of there."
            )


def clear_output(output: Path, folders: Iterable[str] = (CHECKPOINTS, TENSORBOARD)) -> None:
    """Make the folder, or empty it of what an earlier run left: all files, and these ``folders``.

    Raises:
        OutputError: something cannot be deleted or made.
    """
    try:
        for folder in folders:
            if (output / folder).exists():
                shutil.rmtree(output / folder)
        if output.exists():
            for file in [file for file in output.iterdir() if not file.is_dir()]:
                file.unlink()
        (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{error.filename or output} cannot be replaced: {error.strerror or error}. Delete "
            f"{output} yourself, or give another name."
        ) from error


def _holds_something(output: Path) -> bool:
    if not output.is_dir():
        return output.exists()
    return any(not path.is_dir() for path in output.rglob("*"))


def write_result(config: FinetuneConfig, trainer: Any, text: TextSide, base: str) -> None:
    """The files of the method. All processes call it: each gives its shard of the weights."""
    state = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        # On a processor a tensor that is gathered may still be under way.
        state = {n: t.wait() if hasattr(t, "wait") else t for n, t in gathered.items()}
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    config.output.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".result.", dir=config.output))
    try:
        made = temporary / "result"
        if config.method in ("lora", "qlora"):
            _write_adapter(model, state, made, base)
        elif config.method == "ptuning":
            from glimmer.hf import prefix

            prefix.save_prefix(model, made)
        else:
            _write_model(config, model, state, made, text)
        for file in sorted(made.iterdir()):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            file.replace(config.output / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_adapter(model: Any, state: Any, folder: Path, base: str) -> None:
    # PEFT would ask a hub whether the base's vocabulary has grown: no name, no question.
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_model(
    config: FinetuneConfig, model: Any, state: Any, folder: Path, text: TextSide
) -> None:
    """A complete folder: weights as transformers names them, config and tokenizer as Glimmer's
    own exporter writes them, so that a folder says which family it is of."""
    if state is None:
        state = model.state_dict()
    if config.save_dtype != "auto":
        dtype = getattr(torch, config.save_dtype)
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
    model.save_pretrained(folder, state_dict=state)
    exporter = text.family.exporter
    assert exporter is not None  # check_result
    dtypes = [t.dtype for t in state.values() if t.is_floating_point()]
    dtype_name = str(max(set(dtypes), key=dtypes.count)).removeprefix("torch.")
    settings = exporter.folder.config(
        text.architecture,
        dtype=dtype_name,
        eos_token_ids=text.stop_token_ids,
        pad_token_id=text.pad_token_id,
    )
    (folder / "config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / "generation_config.json").unlink(missing_ok=True)
    template = text.jinja or exporter.chat_template
    for name, data in exporter.folder.tokenizer_files(text.tokenizer, template).items():
        (folder / name).write_bytes(data)
    with open_checkpoint(text.path) as checkpoint:
        for name in _COPIED:
            if (file := checkpoint.file(name)) is not None:
                (folder / name).write_bytes(file.read_bytes())


def base_name(model: str) -> str:
    """What an adapter calls its base: a release by its name, files by their whole path."""
    path, release = find_file(model)
    return release.name if release is not None else str(path.resolve())

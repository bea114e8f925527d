"""What a run leaves behind: checkpoints, a report, and a model that the engine loads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimmer.checkpoints.atomic import new_file, new_folder
from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm.export import SEVERAL_BLANKS, official_tokenizer
from glimmer.families.chatglm.tokenizer import ChatGLMTokenizer
from glimmer.training.finetuning.outputs import (
    CHECKPOINTS,
    RUN_FILE,
    TENSORBOARD,
    check_output,
    clear_output,
)
from glimmer.training.finetuning.resumption import require_checkpoint
from glimmer.training.pretraining.config import PretrainConfig

MODEL, TOKENIZER = "model", "tokenizer"
REPORT = "report.json"
# Keys that change nothing of the losses: a run that goes on may have other values.
_FREE_KEYS = frozenset(
    {"output", "log_every", "eval_every", "save_every", "keep_checkpoints", "tensorboard",
     "held_out_rows"}
)  # fmt: skip


def check(config: PretrainConfig, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, if that is wanted. Changes nothing.

    Raises:
        InvalidParameterError: the folder is not to be written to, or holds no checkpoint.
    """
    if resume and overwrite:
        raise InvalidParameterError(
            f"--resume goes on with the run in {config.output}, and --force replaces it: give one "
            "of them."
        )
    if resume:
        return require_checkpoint(config.output)
    if int(os.environ.get("RANK", "0")) == 0:  # the others see what it makes
        inputs: list[str | Path] = [*config.data, *config.held_out]
        inputs += [given for given in (config.base, config.tokenizer) if given is not None]
        check_output(config.output, inputs, overwrite=overwrite, report=REPORT)
    return None


def begin(
    config: PretrainConfig, data_sha256: str, processes: int, tokenizer: ChatGLMTokenizer
) -> None:
    """Make the folder, or clear what an earlier run left in it, and note what is begun.

    Raises:
        OutputError: it cannot be written.
    """
    clear_output(config.output, (CHECKPOINTS, MODEL, TOKENIZER, TENSORBOARD))
    run = {
        "config": config.model_dump(mode="json"),
        "data": data_sha256,
        "processes": processes,
    }
    _write_json(config.output / CHECKPOINTS / RUN_FILE, run)
    write_tokenizer(tokenizer, config.output / TOKENIZER)


def check_resumed(config: PretrainConfig, data_sha256: str, processes: int) -> None:
    """Refuse to go on with what would have other losses.

    Raises:
        InvalidParameterError: the run was begun with something else, or does not tell with what.
    """
    file = config.output / CHECKPOINTS / RUN_FILE
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        old, old_data = before["config"], before["data"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidParameterError(
            f"{file}, which tells what the run was begun with, cannot be read ({error!r:.80}). "
            "Begin anew with --force."
        ) from error
    now = config.model_dump(mode="json")
    changed = [key for key in now if key not in _FREE_KEYS and old.get(key) != now[key]]
    if changed:
        told = ", ".join(f"{key} {old.get(key)!r:.60} -> {now[key]!r:.60}" for key in changed)
        raise InvalidParameterError(
            f"The run in {config.output} was begun with other settings ({told}). Resume it with "
            "what it was begun with, or begin anew (--force)."
        )
    if old_data != data_sha256:
        raise InvalidParameterError(
            f"The run in {config.output} was begun with other texts than "
            f"{', '.join(map(str, config.data))} hold now. Begin anew with --force."
        )
    if (begun := before.get("processes", processes)) != processes:
        raise InvalidParameterError(
            f"The run in {config.output} was begun with {begun} processes, and not with "
            f"{processes}: a step would have other rows. Start as many again, or begin anew "
            "(--force)."
        )


def write_tokenizer(tokenizer: ChatGLMTokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in official_tokenizer(tokenizer, None).items():
        (folder / name).write_bytes(data)


def write_model(
    model: Any, tokenizer: ChatGLMTokenizer, target: Path, licences: Mapping[str, bytes]
) -> None:
    """A folder in the official layout: weights, config, tokenizer, and the base's ``licences``.

    Raises:
        OutputError: it cannot be written.
    """
    with new_folder(target, overwrite=True) as folder:
        model.save_pretrained(folder)
        complete(folder, tokenizer)
        for name, data in licences.items():
            (folder / name).write_bytes(data)


def complete(folder: Path, tokenizer: ChatGLMTokenizer) -> None:
    """Make a model of what transformers has saved: a config as the official code has it, and the
    tokenizer."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    _write_json(file, config | {"architectures": ["ChatGLMModel"]})
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(tokenizer, folder)


def tell_blanks(model: Any, config: PretrainConfig) -> None:
    """Have the network's config say whether it learns to fill several blanks of a text. A base may
    have learnt it before."""
    if config.objective.takes_several:
        setattr(model.config, SEVERAL_BLANKS, True)


def write_report(output: Path, report: Mapping[str, Any]) -> None:
    _write_json(output / REPORT, report)


def _write_json(file: Path, value: Any) -> None:
    with new_file(file, overwrite=True) as stream:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        stream.write(text.encode("utf-8"))

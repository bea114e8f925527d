"""What a run leaves behind: checkpoints, a report, and a model that the engine loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimmer.checkpoints.atomic import new_file, new_folder
from glimmer.errors import InvalidParameterError
from glimmer.families.chatglm.export import SEVERAL_BLANKS, official_tokenizer
from glimmer.families.chatglm.tokenizer import ChatGLMTokenizer
from glimmer.training.finetuning.outputs import CHECKPOINTS, TENSORBOARD
from glimmer.training.finetuning.resumption import require_checkpoint
from glimmer.training.pretraining.config import PretrainConfig

MODEL, TOKENIZER = "model", "tokenizer"
REPORT, RUN = "report.json", "run.json"
# Keys that change nothing of the losses: a run that goes on may have other values.
_FREE_KEYS = frozenset(
    {"output", "log_every", "eval_every", "save_every", "keep_checkpoints", "tensorboard",
     "held_out_rows"}
)  # fmt: skip


def prepare(config: PretrainConfig, data_sha256: str, *, overwrite: bool) -> None:
    """Make the folder, or clear what an earlier run left in it, and note what is begun.

    Raises:
        InvalidParameterError: it holds something, which is not to be overwritten.
    """
    output = config.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise InvalidParameterError(
                f"{output} exists already. Go on with its run by --resume, replace it with "
                "--force, or give another name."
            )
        for folder in (CHECKPOINTS, MODEL, TOKENIZER, TENSORBOARD):
            shutil.rmtree(output / folder, ignore_errors=True)
    (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    run = {"config": config.model_dump(mode="json"), "data": data_sha256}
    _write_json(output / CHECKPOINTS / RUN, run)


def check_resumed(config: PretrainConfig, data_sha256: str) -> Path:
    """The checkpoint to go on from.

    Raises:
        InvalidParameterError: there is none, or the run was begun with something else.
    """
    checkpoint = require_checkpoint(config.output)
    before = json.loads((config.output / CHECKPOINTS / RUN).read_text(encoding="utf-8"))
    now = config.model_dump(mode="json")
    old = before["config"]
    changed = [key for key in now if key not in _FREE_KEYS and old.get(key) != now[key]]
    if changed:
        told = ", ".join(f"{key} {old.get(key)!r:.60} -> {now[key]!r:.60}" for key in changed)
        raise InvalidParameterError(
            f"The run in {config.output} was begun with other settings ({told}). Resume it with "
            "what it was begun with, or begin anew (--force)."
        )
    if before["data"] != data_sha256:
        raise InvalidParameterError(
            f"The run in {config.output} was begun with other texts than "
            f"{', '.join(map(str, config.data))} hold now. Begin anew with --force."
        )
    return checkpoint


def write_tokenizer(tokenizer: ChatGLMTokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in official_tokenizer(tokenizer, None).items():
        (folder / name).write_bytes(data)


def write_model(model: Any, tokenizer: ChatGLMTokenizer, target: Path) -> None:
    """A folder in the official layout: weights, config, tokenizer.

    Raises:
        OutputError: it cannot be written.
    """
    with new_folder(target, overwrite=True) as folder:
        model.save_pretrained(folder)
        complete(folder, tokenizer)


def complete(folder: Path, tokenizer: ChatGLMTokenizer) -> None:
    """Make a model of what transformers has saved: with its tokenizer, and a config that says what
    the network has learnt."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"architectures": ["ChatGLMModel"], SEVERAL_BLANKS: True}
    _write_json(file, config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(tokenizer, folder)


def write_report(output: Path, report: Mapping[str, Any]) -> None:
    _write_json(output / REPORT, report)


def _write_json(file: Path, value: Any) -> None:
    with new_file(file, overwrite=True) as stream:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        stream.write(text.encode("utf-8"))

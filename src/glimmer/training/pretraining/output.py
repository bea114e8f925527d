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
from glimmer.training.pretraining.config import PretrainConfig

CHECKPOINTS, MODEL, TOKENIZER, TENSORBOARD = "checkpoints", "model", "tokenizer", "tensorboard"
REPORT, RUN = "report.json", "run.json"
# Keys that change nothing of the losses: a run that goes on may have other values.
_FREE_KEYS = frozenset(
    {"output", "log_every", "eval_every", "save_every", "keep_checkpoints", "tensorboard",
     "held_out_rows"}
)  # fmt: skip


def prepare(config: PretrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder, or clear what an earlier run left in it.

    Raises:
        InvalidParameterError: it holds something, and neither is asked for; nothing to go on from,
            or another run's.
    """
    output = config.output
    if resume:
        if last_checkpoint(output) is None:
            raise InvalidParameterError(
                f"There is no checkpoint to go on from in {output / CHECKPOINTS}. Leave --resume "
                "out to begin anew."
            )
        _check_same_run(config)
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise InvalidParameterError(
                f"{output} exists already. Go on with its run by --resume, replace it with "
                "--force, or give another name."
            )
        for folder in (CHECKPOINTS, MODEL, TOKENIZER, TENSORBOARD):
            shutil.rmtree(output / folder, ignore_errors=True)
    (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    _write_json(output / RUN, config.model_dump(mode="json"))


def last_checkpoint(output: Path) -> Path | None:
    """The newest that was written to its end: the state is written last."""
    found = (output / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")
    return max(
        (file.parent for file in found),
        key=lambda folder: int(folder.name.rpartition("-")[2]),
        default=None,
    )


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


def _check_same_run(config: PretrainConfig) -> None:
    file = config.output / RUN
    before = json.loads(file.read_text(encoding="utf-8"))
    now = config.model_dump(mode="json")
    changed = [k for k in now if k not in _FREE_KEYS and before.get(k) != now[k]]
    if changed:
        told = ", ".join(f"{key} {before.get(key)!r} -> {now[key]!r}" for key in changed)
        raise InvalidParameterError(
            f"The run in {config.output} has other settings ({told:.400}): it cannot go on with "
            "these. Take the old ones, or begin anew in another folder."
        )


def _write_json(file: Path, value: Any) -> None:
    with new_file(file, overwrite=True) as stream:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        stream.write(text.encode("utf-8"))

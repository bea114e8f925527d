"""What a run was begun with, and the checkpoint from which it goes on."""

from __future__ import annotations

import json
from pathlib import Path

from glimmer.checkpoints.atomic import new_file
from glimmer.errors import InvalidParameterError
from glimmer.training.config import FinetuneConfig
from glimmer.training.finetuning.dataset import TrainingRows
from glimmer.training.finetuning.outputs import CHECKPOINTS, RUN_FILE

# Keys that change nothing of the losses: a resumed run may have other values.
_FREE_KEYS = frozenset(
    {"output", "save_every", "keep_checkpoints", "tensorboard", "save_dtype", "guard_threshold"}
)


def remember_run(config: FinetuneConfig, data: TrainingRows) -> None:
    """Write down what this run is, for the day that it is resumed."""
    run = {"config": config.model_dump(mode="json"), "data": data.sha256}
    with new_file(config.output / CHECKPOINTS / RUN_FILE, overwrite=True) as stream:
        stream.write(json.dumps(run, ensure_ascii=False, indent=1).encode())


def check_resumed(config: FinetuneConfig, data: TrainingRows) -> None:
    """Refuse to go on with other settings or other data: the losses would be neither run's.

    Raises:
        InvalidParameterError: the run was begun with something else.
    """
    file = config.output / CHECKPOINTS / RUN_FILE
    before = json.loads(file.read_text(encoding="utf-8"))
    for key, value in config.model_dump(mode="json").items():
        if key not in _FREE_KEYS and before["config"].get(key) != value:
            raise InvalidParameterError(
                f"The run in {config.output} was begun with {key} "
                f"{before['config'].get(key)!r:.60}, and not with {value!r:.60}. Resume it with "
                "what it was begun with, or begin anew (--force)."
            )
    if before["data"] != data.sha256:
        raise InvalidParameterError(
            f"The run in {config.output} was begun with other data than "
            f"{', '.join(map(str, config.data))} hold now, or the model's tokenizer has changed. "
            "Begin anew with --force."
        )


def last_checkpoint(output: Path) -> Path | None:
    """The newest that was written to its end: the state is written last."""
    folders = (output / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")
    return max(
        (file.parent for file in folders),
        key=lambda folder: int(folder.name.rpartition("-")[2]),
        default=None,
    )


def require_checkpoint(output: Path) -> Path:
    """The newest checkpoint. Raises InvalidParameterError where there is none."""
    found = last_checkpoint(output)
    if found is None:
        raise InvalidParameterError(
            f"There is no checkpoint to resume from in {output / CHECKPOINTS}. Leave --resume out "
            "to begin anew."
        )
    return found

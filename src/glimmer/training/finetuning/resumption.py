"""What a run was begun with, and the checkpoint from which it goes on."""

from __future__ import annotations

import json
from pathlib import Path

from glimmer.checkpoints.atomic import new_file
from glimmer.errors import InvalidParameterError
from glimmer.training.config import FinetuneConfig
from glimmer.training.finetuning.dataset import TrainingRows
from glimmer.training.finetuning.devices import num_processes
from glimmer.training.finetuning.outputs import CHECKPOINTS, RUN_FILE

# Keys that change nothing of the losses: a resumed run may have other values.
_FREE_KEYS = frozenset(
    {"output", "save_every", "keep_checkpoints", "tensorboard", "save_dtype", "guard_threshold"}
)


def remember_run(config: FinetuneConfig, data: TrainingRows) -> None:
    """Write down what this run is, for the day that it is resumed."""
    run = {
        "config": config.model_dump(mode="json"),
        "data": data.sha256,
        "processes": num_processes(),
    }
    with new_file(config.output / CHECKPOINTS / RUN_FILE, overwrite=True) as stream:
        stream.write(json.dumps(run, ensure_ascii=False, indent=1).encode())


def check_resumed(config: FinetuneConfig, data: TrainingRows) -> None:
    """Refuse to go on with other settings, other data or another number of processes: the losses
    would be neither run's.

    Raises:
        InvalidParameterError: the run was begun with something else, or does not tell with what.
    """
    file = config.output / CHECKPOINTS / RUN_FILE
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        settings, sha256 = before["config"], before["data"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidParameterError(
            f"{file}, which tells what the run was begun with, cannot be read ({error!r:.80}). "
            "Begin anew with --force."
        ) from error
    for key, value in config.model_dump(mode="json").items():
        # A setting that this version has and the run's had not: it was as it is by default.
        old = settings.get(
            key, FinetuneConfig.model_fields[key].get_default(call_default_factory=True)
        )
        if key not in _FREE_KEYS and old != value:
            raise InvalidParameterError(
                f"The run in {config.output} was begun with {key} {old!r:.60}, and not with "
                f"{value!r:.60}. Resume it with what it was begun with, or begin anew (--force)."
            )
    if sha256 != data.sha256:
        raise InvalidParameterError(
            f"The run in {config.output} was begun with other data than "
            f"{', '.join(map(str, config.data))} hold now, or the model's tokenizer has changed. "
            "Begin anew with --force."
        )
    processes = before.get("processes", num_processes())
    if processes != num_processes():
        raise InvalidParameterError(
            f"The run in {config.output} was begun with {processes} processes, and not with "
            f"{num_processes()}: they would share its rows in another way. Start as many again, or "
            "begin anew (--force)."
        )


def last_checkpoint(output: Path) -> Path | None:
    """The newest that was written to its end: the state is written last."""
    folders = (output / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")
    return max(
        (file.parent for file in folders if _is_whole(file)),
        key=lambda folder: int(folder.name.rpartition("-")[2]),
        default=None,
    )


def _is_whole(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text(encoding="utf-8")))
    except ValueError:  # the machine went down while it was written
        return False


def require_checkpoint(output: Path) -> Path:
    """The newest checkpoint. Raises InvalidParameterError where there is none."""
    found = last_checkpoint(output)
    if found is None:
        raise InvalidParameterError(
            f"There is no checkpoint to resume from in {output / CHECKPOINTS}. Leave --resume out "
            "to begin anew."
        )
    return found

"""One pre-training run from its config to its model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from glimmer.families.chatglm.tokenizer import ChatGLMTokenizer
from glimmer.training.blank_infilling import KINDS, Kind, Row
from glimmer.training.finetuning import report
from glimmer.training.finetuning.callbacks import (
    LossGuard,
    OwnIntervals,
    ProgressBar,
    StopOnSignal,
)
from glimmer.training.finetuning.devices import (
    check_precision,
    num_processes,
    translated_errors,
)
from glimmer.training.finetuning.outputs import CHECKPOINTS, TENSORBOARD
from glimmer.training.finetuning.quiet import quiet_libraries
from glimmer.training.finetuning.resumption import last_checkpoint
from glimmer.training.pretraining import output, texts
from glimmer.training.pretraining.config import PretrainConfig
from glimmer.training.pretraining.corpus import Corpus, SentenceMarks, TrainingRows
from glimmer.training.pretraining.measures import Score, to_metrics, unigram_score
from glimmer.training.pretraining.network import (
    BlankInfillingNetwork,
    RowDataset,
    known_network,
    new_network,
)
from glimmer.training.pretraining.trainer import BlankTrainer, training_arguments

_ADVICE = "Lower batch_size or row_length, set gradient_checkpointing, or take a smaller preset."


@dataclass(frozen=True, slots=True)
class Pretrained:
    """How a run ended."""

    model: Path | None
    """The folder of the finished model; None for a run that was stopped."""
    checkpoint: Path | None
    """Where a stopped run goes on from (``resume``); None for one that reached its end."""
    steps: int
    losses: tuple[Mapping[str, float], ...]
    """As logged: ``step``, ``loss`` and the loss of each kind, such as ``mask_loss``."""
    scores: Mapping[Kind, Score]
    """Of blanks in held-out texts, by kind; empty without such texts or for a stopped run."""
    unigram: Mapping[Kind, Score]
    """Of a guess by frequencies alone, on the same blanks."""
    num_parameters: int
    num_tokens: int
    """Of all texts to train on."""
    seconds: float
    """Of training and measuring."""
    is_main: bool
    """Whether this process is the one that writes and speaks."""


def pretrain(
    config: PretrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Pretrained:
    """Train a network to fill blanks, as ``config`` says, and write it to ``config.output``.

    Under `accelerate launch` each process calls it. A run that is stopped by Ctrl-C or SIGTERM
    saves a checkpoint, from which ``resume`` goes on with the very losses it would have had.

    Raises:
        UsageError: the config and the texts do not go together; the message says how.
        TrainingError: the loss is no number.
        OutputError: a file could not be written.
        OutOfMemoryError: weights, gradients or activations do not fit.
    """
    check_precision(config)
    checkpoint = output.check(config, resume=resume, overwrite=overwrite)
    documents, held_out = texts.split_documents(config)
    data = texts.digest(documents)
    if checkpoint is not None:
        output.check_resumed(config, data, num_processes())
    console = console or Console(stderr=True)
    with quiet_libraries(), translated_errors(config.output, _ADVICE):
        return _train(config, documents, held_out, data, checkpoint, console)


def _train(
    config: PretrainConfig,
    documents: list[str],
    held_out: list[str],
    data_sha256: str,
    checkpoint: Path | None,
    console: Console,
) -> Pretrained:
    arguments = training_arguments(config, config.output / CHECKPOINTS, measures=bool(held_out))
    with console.status("Reading the texts ..."):
        if checkpoint is None:
            tokenizer = _tokenizer(config, documents, arguments)
        else:
            tokenizer = texts.read_tokenizer(config.output / output.TOKENIZER)
        rows, measured = _rows(config, documents, held_out, tokenizer)
    tokens = rows.tokens
    if config.base is not None:
        model = known_network(config.base)
    else:
        model = new_network(config, tokens, tokenizer.vocab_size, rows.pad_id)
    output.tell_blanks(model, config)
    licences = {} if config.base is None else texts.licences(config.base)
    trainer, (stop, bar) = _trainer(config, arguments, model, tokenizer, rows, measured, console)
    is_main = trainer.is_world_process_zero()
    # Nothing is deleted before the run is sure to begin.
    if is_main and checkpoint is None:
        output.begin(config, data_sha256, arguments.world_size, tokenizer)
    started = time.monotonic()
    with stop.listening(), bar:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    scores: Mapping[Kind, Score] = {}
    target = config.output / output.MODEL
    if not stop.stopped:
        scores = trainer.measure()
        if is_main:
            unwrapped = trainer.accelerator.unwrap_model(trainer.model)
            output.write_model(unwrapped, tokenizer, target, licences)
    counts = rows.corpus.counts(model.config.vocab_size)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = Pretrained(
        model=None if stop.stopped else target,
        checkpoint=last_checkpoint(config.output) if stop.stopped else None,
        steps=trainer.state.global_step,
        losses=tuple(history),
        scores=scores,
        unigram={k: unigram_score(v, counts, tokens.end) for k, v in measured.items()},
        num_parameters=model.num_parameters(),
        num_tokens=rows.corpus.num_tokens,
        seconds=time.monotonic() - started,
        is_main=is_main,
    )
    if is_main:
        if history:
            report.draw_losses(config.output, history, ())
        output.write_report(config.output, _report(result, config, data_sha256, trainer, rows))
    return result


def _tokenizer(
    config: PretrainConfig, documents: list[str], arguments: TrainingArguments
) -> ChatGLMTokenizer:
    """The one that is given, or one that the first process trains and the others get."""
    if (known := texts.known_tokenizer(config)) is not None:
        return known
    data = b""
    if arguments.process_index == 0:
        data = texts.trained_tokenizer(config, documents).model_bytes
    return texts.tokenizer_from(_from_first(data, arguments), "the new tokenizer")


def _from_first(data: bytes, arguments: TrainingArguments) -> bytes:
    """What the first process has, in each."""
    if arguments.world_size == 1:
        return data
    size = torch.tensor(len(data), device=arguments.device)
    torch.distributed.broadcast(size, 0)
    sent = torch.zeros(int(size), dtype=torch.uint8, device=arguments.device)
    if arguments.process_index == 0:
        sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    torch.distributed.broadcast(sent, 0)
    return sent.cpu().numpy().tobytes()


def _rows(
    config: PretrainConfig,
    documents: list[str],
    held_out: list[str],
    tokenizer: ChatGLMTokenizer,
) -> tuple[TrainingRows, Mapping[Kind, list[Row]]]:
    """What is trained on, and what is measured on."""
    tokens = texts.blank_tokens(tokenizer)
    pad_id = tokenizer.special_tokens.get("<pad>", tokens.end)
    marks = SentenceMarks.of(tokenizer)

    def corpus(of: list[str], name: str) -> Corpus:
        encoded = texts.encode(of, tokenizer)
        return Corpus(encoded, marks, config.objective, config.row_length, name=name)

    rows = TrainingRows(
        corpus(documents, "texts"),
        config.objective,
        tokens,
        config.row_length,
        pad_id,
        config.seed,
    )
    if not held_out:
        return rows, {}
    return rows, _held_out_rows(config, corpus(held_out, "texts that are held out"), rows)


def _held_out_rows(
    config: PretrainConfig, corpus: Corpus, like: TrainingRows
) -> dict[Kind, list[Row]]:
    """The rows to measure on, for each kind that is trained."""
    found: dict[Kind, list[Row]] = {}
    for kind in KINDS:
        if config.mix.get(kind, 0) > 0:
            rows = TrainingRows(
                corpus, like.objective, like.tokens, like.row_length, like.pad_id, config.seed, kind
            )
            count = min(config.held_out_rows, rows.rows_per_pass)
            found[kind] = [rows.row(i) for i in range(count)]
    return found


def _trainer(
    config: PretrainConfig,
    arguments: TrainingArguments,
    model: BlankInfillingNetwork,
    tokenizer: ChatGLMTokenizer,
    rows: TrainingRows,
    held_out: Mapping[Kind, list[Row]],
    console: Console,
) -> tuple[BlankTrainer, tuple[StopOnSignal, ProgressBar]]:
    per_step = config.batch_size * config.gradient_accumulation * arguments.world_size
    trainer = BlankTrainer(
        model=model,
        args=arguments,
        train_dataset=RowDataset(rows, config.steps * per_step),
        held_out=held_out,
        end_id=rows.tokens.end,
    )
    trainer.remove_callback(PrinterCallback)  # it writes to standard output
    stop, bar = StopOnSignal(), ProgressBar(console)
    # The guard on the loss comes before what would save: it ends the run first.
    guard = LossGuard(scaled=config.mixed_precision == "fp16")
    for callback in (guard, OwnIntervals(), stop, bar, _CompleteCheckpoints(tokenizer)):
        trainer.add_callback(callback)
    if config.tensorboard:
        from transformers.integrations import TensorBoardCallback

        board = TensorBoardCallback()
        board.logging_dir = str(config.output / TENSORBOARD)
        trainer.add_callback(board)
    return trainer, (stop, bar)


class _CompleteCheckpoints(TrainerCallback):
    """Each checkpoint is a model as well: it has the tokenizer. None is saved whose loss the guard
    has not seen."""

    def __init__(self, tokenizer: ChatGLMTokenizer) -> None:
        self._tokenizer = tokenizer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log |= control.should_save

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            output.complete(folder, self._tokenizer)


def _report(
    result: Pretrained,
    config: PretrainConfig,
    data_sha256: str,
    trainer: BlankTrainer,
    rows: TrainingRows,
) -> dict[str, Any]:
    return {
        "finished": result.model is not None,
        "config": config.model_dump(mode="json"),
        "versions": report.versions(),
        "processes": trainer.args.world_size,
        "data_sha256": data_sha256,
        "parameters": result.num_parameters,
        "texts": len(rows.corpus.texts),
        "tokens": result.num_tokens,
        "rows_per_pass": rows.rows_per_pass,
        "passes": result.steps
        * trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size
        / rows.rows_per_pass,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "losses": list(result.losses),
        "evaluations": [e for e in trainer.state.log_history if "eval_loss" in e],
        "held_out": to_metrics(result.scores) if result.scores else None,
        "held_out_tokens": {kind: score.num_tokens for kind, score in result.scores.items()},
        "unigram": {kind: asdict(score) for kind, score in result.unigram.items()},
    }

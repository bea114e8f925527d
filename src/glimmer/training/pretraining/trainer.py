"""transformers' Trainer, with rows in their own order, a loss per objective and our measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from glimmer.training.blank_infilling import IGNORED, KINDS, Kind, Row
from glimmer.training.pretraining.config import PretrainConfig
from glimmer.training.pretraining.measures import Score, to_metrics
from glimmer.training.pretraining.network import BlankInfillingNetwork, collate


class BlankTrainer(Trainer):
    """``held_out`` has, by kind, the rows that are measured; ``end_id`` ends a span."""

    control: Any

    def __init__(
        self, *args: Any, held_out: Mapping[Kind, Sequence[Row]], end_id: int, **values: Any
    ) -> None:
        rows = [row for of_kind in held_out.values() for row in of_kind]
        super().__init__(*args, data_collator=collate, eval_dataset=rows, **values)
        self._held_out = held_out
        self._end_id = end_id
        self._sums = torch.zeros(2, len(KINDS), dtype=torch.float64)
        """Losses and their number since the last log, by kind."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # rows are drawn in random order already

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        kinds = inputs.pop("kinds")[inputs["labels"] != IGNORED]
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        losses, kinds = outputs["losses"].cpu().double(), kinds.cpu()
        for number in range(len(KINDS)):
            of_kind = losses[kinds == number]
            self._sums[0, number] += of_kind.sum()
            self._sums[1, number] += len(of_kind)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            sums = self._sums.float().to(self.args.device)
            sums = self.accelerator.reduce(sums, reduction="sum")  # of all processes
            for kind, (total, count) in zip(KINDS, sums.T.tolist(), strict=True):
                if count:
                    logs[f"{kind}_loss"] = total / count
            self._sums.zero_()
        super().log(logs, start_time)

    def evaluate(self, *_args: Any, **_values: Any) -> dict[str, float]:
        metrics = to_metrics(self.measure())
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def measure(self) -> dict[Kind, Score]:
        """Of the held-out rows, by kind."""
        model = self.accelerator.unwrap_model(self.model)
        size = self.args.per_device_train_batch_size
        return {
            kind: score_network(model, rows, self._end_id, batch_size=size)
            for kind, rows in self._held_out.items()
        }


def score_network(
    model: BlankInfillingNetwork, rows: Sequence[Row], end_id: int, *, batch_size: int = 8
) -> Score:
    """Of a network that is told the tokens before, one after another, and that the span goes on; in
    evaluation mode."""
    was_training = model.training
    model.eval()
    losses, hits = [], []
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size])
            batch.pop("kinds")
            tensors = {name: x.to(model.device) for name, x in batch.items()}
            outputs = model(**tensors, excluded_id=end_id)
            counted = batch["labels"][batch["labels"] != IGNORED] != end_id
            losses.append(outputs["losses"].cpu()[counted])
            hits.append(outputs["hits"].cpu()[counted])
    model.train(was_training)
    return Score.of(torch.cat(losses).double().numpy(), torch.cat(hits).numpy())


def training_arguments(
    config: PretrainConfig, checkpoints: Path, *, measures: bool
) -> TrainingArguments:
    """``measures``: whether there are texts to measure on. Joins the other processes, if any."""
    every = config.save_every or max(1, config.steps // 10)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        use_cpu=config.device == "cpu",
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(
            config.schedule, config.schedule
        ),
        warmup_steps=config.warmup if config.warmup < 1 else int(config.warmup),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        adam_beta2=0.98,  # a short run forgets its first gradients sooner
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.mixed_precision == "bf16",
        fp16=config.mixed_precision == "fp16",
        activation_checkpointing=config.gradient_checkpointing,
        logging_strategy="steps",
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide what the loss guard looks for
        save_strategy="steps",
        save_steps=every,
        save_total_limit=config.keep_checkpoints,
        eval_strategy="steps" if config.eval_every and measures else "no",
        eval_steps=config.eval_every,
        remove_unused_columns=False,
        disable_tqdm=True,  # the bar is ours
        report_to="none",
        log_level="error",
        log_level_replica="error",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=config.device != "cpu",
    )
    # A process trains on one GPU; transformers would spread it over all that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments

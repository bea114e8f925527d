"""The trainers of transformers and TRL, as fine-tuning uses them.

They send no telemetry and write no model card, and their checkpoints hold what trains, by the
module's own names, not the weights that stay as they were.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from safetensors.torch import save_file
from transformers import PrinterCallback, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from glimmer.training.config import FinetuneConfig
from glimmer.training.finetuning import methods
from glimmer.training.finetuning.collate import PackingCollator, PaddingCollator, PairCollator
from glimmer.training.finetuning.dataset import Row, TrainingRows, pack
from glimmer.training.finetuning.devices import num_processes, on_processor
from glimmer.training.finetuning.outputs import CHECKPOINTS
from glimmer.training.text import TextSide


class _Shared:
    """What both trainers are without, and how both save."""

    is_adapter: bool
    """Whether PEFT cuts the adapter out of the model, and puts it back."""

    def _send_telemetry(self) -> None:
        """TRL would tell its makers what class is trained on which machine."""

    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """Theirs speaks of a hub that nothing is uploaded to."""

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate shards over GPUs alone; torch does as well over processors (gloo), which is
        where sharding can be tried without any."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        trainer: Any = self
        state = trainer.accelerator.state
        if trainer.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
            if trainer.args.mixed_precision != "no":
                plugin.set_mixed_precision(trainer.args.mixed_precision)
            state.fsdp_plugin = plugin
            # Where a process first learns it, and where each new view of the state copies it from.
            for shared in (state._shared_state, PartialState._shared_state):
                shared["distributed_type"] = DistributedType.FSDP
            trainer.is_fsdp_enabled = True

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """A run that is resumed behind its last step, to write its result, makes no other one."""
        trainer: Any = self
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        trainer: Any = self
        folder = Path(output_dir or trainer.args.output_dir)
        if trainer.is_fsdp_enabled:  # which saves its shards itself, beside the optimizer's
            folder.mkdir(parents=True, exist_ok=True)
        elif self.is_adapter or trainer.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        elif trainer.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            trained = {
                name: parameter.detach().contiguous()
                for name, parameter in trainer.model.named_parameters()
                if parameter.requires_grad
            }
            save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})


class AnswerTrainer(_Shared, Trainer):
    """Learns answers: the mean loss of all trained tokens of a step, whatever row they are in; and
    of all those that it evaluates on, of which a row has ``tokens_per_row`` on average."""

    tokens_per_row = 1.0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not model.training:
            # transformers takes the mean of batches' means, row by row: a short answer would count
            # as a long one. So a batch's sum is divided by what its rows have on average.
            rows = len(inputs["input_ids"]) * self.accelerator.num_processes
            num_items_in_batch = self.tokens_per_row * rows
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class PreferenceTrainer(_Shared, DPOTrainer):
    """Learns to prefer answers to others, from rows that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_args: Any, **_kwargs: Any) -> Dataset:
        return dataset


def make_trainer(
    config: FinetuneConfig, text: TextSide, data: TrainingRows, held_out: TrainingRows | None
) -> Any:
    """The trainer of a run, its model loaded and prepared."""
    model = methods.load_base(config, text)
    prepared = methods.prepare(config, model)
    padding = PaddingCollator(text.pad_token_id, "right")
    train, evaluate = _rows(config, data), None if held_out is None else _rows(config, held_out)
    arguments = _arguments(config, len(train), evaluates=evaluate is not None)
    is_adapter = config.method in ("lora", "qlora")
    trainer: Any
    if config.objective == "sft":
        packing = PackingCollator(text.pad_token_id, text.architecture)
        trainer = AnswerTrainer(
            model=prepared,
            args=_on_one_gpu(TrainingArguments(**arguments)),
            data_collator=packing if config.packing else padding,
            train_dataset=train,
            eval_dataset=evaluate,
        )
        if held_out is not None and evaluate is not None:
            trainer.tokens_per_row = held_out.num_trained_tokens / len(evaluate)
    else:
        from glimmer import hf

        options = {"beta": config.dpo_beta, "max_length": None}
        trainer = PreferenceTrainer(
            model=prepared,
            # With an adapter, the model without it is what answers are compared with.
            ref_model=None if is_adapter else methods.load_base(config, text),
            args=_on_one_gpu(DPOConfig(**arguments, **options)),
            data_collator=PairCollator(padding),
            train_dataset=Dataset.from_list(train),
            eval_dataset=None if evaluate is None else Dataset.from_list(evaluate),
            processing_class=hf.load_tokenizer(text.path, config.family),
            peft_config=methods.lora_config(config, model) if is_adapter else None,
        )
        trainer.processing_class = None  # checkpoints need no tokenizer
    trainer.remove_callback(PrinterCallback)
    trainer.is_adapter = is_adapter
    if is_adapter:
        for settings in trainer.model.peft_config.values():
            # PEFT asks a hub about a base that has a name; the result gets it when it is written.
            settings.base_model_name_or_path = ""
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                # TRL rounds it to bfloat16 over 4-bit weights, and small steps vanish there.
                parameter.data = parameter.data.float()
    return trainer


def _on_one_gpu(arguments: Any) -> Any:
    """A process trains on one GPU; transformers would spread it over all that it sees, which is
    slower than a process for each of them (torchrun), and averages losses in another way."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _rows(config: FinetuneConfig, data: TrainingRows) -> list[Row]:
    return pack(data.rows, config.max_length) if config.packing else data.rows


def _arguments(config: FinetuneConfig, num_rows: int, *, evaluates: bool) -> dict[str, Any]:
    """The keywords of transformers' TrainingArguments that both trainers share."""
    batches = math.ceil(num_rows / (config.batch_size * num_processes()))
    steps_per_epoch = math.ceil(batches / config.gradient_accumulation)
    arguments: dict[str, Any] = {
        "output_dir": str(config.output / CHECKPOINTS),
        "use_cpu": on_processor(config),
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.peak_learning_rate,
        "lr_scheduler_type": config.schedule
        if config.schedule != "constant"
        else "constant_with_warmup",
        "warmup_steps": config.warmup if config.warmup < 1 else int(config.warmup),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        # Under FSDP it is FSDP's own, which does not gather the weights a second time.
        "activation_checkpointing": config.gradient_checkpointing and not config.fsdp,
        # Not epochs: an interrupted run ends one early, and would save and measure then.
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": config.save_every or steps_per_epoch,
        "save_total_limit": config.keep_checkpoints,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": (config.eval_every or steps_per_epoch) if evaluates else None,
        "logging_nan_inf_filter": False,  # it would hide what the loss guard looks for
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,  # the bar is ours
        "report_to": "none",
        "log_level": "error",
        "log_level_replica": "error",
        "dataloader_pin_memory": not on_processor(config),
        # Only LoRA's and the prefix's weights train, and all of them in each pass.
        "ddp_find_unused_parameters": False,
    }
    if config.fsdp:
        settings = {"version": 2, "activation_checkpointing": config.gradient_checkpointing}
        arguments |= {"fsdp": True, "fsdp_config": settings}
    if config.deepspeed is not None:
        arguments["deepspeed"] = os.fspath(config.deepspeed)
    return arguments

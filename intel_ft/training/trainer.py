"""Everything that differs from Transformers' Trainer, each override with its reason.

Transformers keeps its loop, callbacks, schedulers, optimizers and logging. The data loader only
counts steps: the position in the data is the step number, so a resumed run has nothing to skip.
"""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState, TrainerState

from intel_ft.config import Config
from intel_ft.host import devices
from intel_ft.models.adapter import adapter_weights
from intel_ft.training import checkpoint
from intel_ft.training.callbacks import trackers
from intel_ft.training.clipping import clip_gradients
from intel_ft.training.decide import total_steps
from intel_ft.training.expert_load import ExpertLoad
from intel_ft.training.lora_plus import scale_learning_rate_of_b
from intel_ft.training.meter import StepClock
from intel_ft.training.optimizer_state import optimizer_name
from intel_ft.training.records import MetricsFile, ProgressLine, is_evaluated
from intel_ft.training.step import (
    NotFinite,
    train_step,
    validation_comparison,
    validation_loss,
)
from intel_ft.training.stream_rows import read_on
from intel_ft.training.workload import Training

_CONTROL = tuple(f"should_{what}" for what in ("training_stop", "epoch_stop", "log", "evaluate"))
_CONTROL += ("should_save",)


class PlanTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose batch is the plan's global step and whose best weights stay in memory."""

    def __init__(
        self,
        training: Training,
        args: TrainingArguments,
        callbacks: Iterable[TrainerCallback],
        lora_plus_ratio: float = 1.0,
    ) -> None:
        model = training.model
        super().__init__(model=model.network, args=args, eval_dataset=training.data.validation)
        self.training = training
        self.lora_plus_ratio = lora_plus_ratio
        self.trained_parameters = sum(w.numel() for w in model.trained_parameters())
        self.best_weights: dict[str, Tensor] | None = None
        self.load = None if training.routing is None else ExpertLoad(training.routing)
        self.add_callback(StepClock(training.meter, model.device))
        for callback in callbacks:
            self.add_callback(callback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Only the number of steps per epoch, because the plan holds the examples."""
        steps: Any = range(self.training.data.plan.steps_per_epoch)
        return DataLoader(steps, collate_fn=lambda _: {}, generator=torch.Generator())

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Our own step, because a batch is packed rows that are divided by a global count."""
        index = self.state.global_step
        read_on(self.training, index)
        return train_step(self.training.data.plan.step(index), self.training)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Add LoRA+'s learning rate, and what the backend does to model and optimizer."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.lora_plus_ratio != 1.0:
            scale_learning_rate_of_b(optimizer, self.model, self.lora_plus_ratio)
        if self.training.model.optimize is not None:
            self.training.model.optimize(self.model, optimizer)
        return optimizer

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """On CPUs it is there already. Among several ranks, Accelerate's device is cpu:0.

        For torch that is another device than cpu, so the move would copy all weights, those of
        files and those without memory (models.frozen_base.FrozenLinear) included.
        """
        if device.type != "cpu":
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: Any, *_: Any, **__: Any) -> Any:
        """Not in DDP, because the step exchanges the gradients itself."""
        return Wrapped(model) if model is self.model else model

    def _clip_grad_norm(self, model: Any) -> Any:
        """End the run at a norm that is not finite, because the update would ruin the weights."""
        gradients = [w.grad for w in model.parameters() if w.grad is not None]
        plain = not any(isinstance(gradient, DTensor) for gradient in gradients)
        if plain and self.training.model.device.type == "cpu":
            norm = clip_gradients(gradients, self.args.max_grad_norm)
        else:
            norm = super()._clip_grad_norm(model)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if not math.isfinite(norm):
            raise NotFinite(
                f"the gradient norm is {float(norm)} at step {self.state.global_step + 1}: lower "
                "train.learning_rate, then --resume from the last checkpoint"
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, memory and load to every training line, so that all callbacks see them."""
        if "loss" in logs:
            logs.update(self.training.meter.log_interval(self.training.world))
            logs.update(devices.peak_gib(self.training.model.device))
            if self.load is not None:
                logs.update(self.load.log_interval(self.training.world))
        super().log(logs, start_time)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss over packed rows shared by all ranks, because Transformers' loop pads a batch."""
        if self.training.data.comparison is not None:
            values = validation_comparison(self.training)
        else:
            loss = validation_loss(self.training)
            values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Keep the best weights in memory, because the best step may have no checkpoint."""
        best: bool = super()._determine_best_metric(metrics, trial)
        if best:
            self.best_weights = adapter_weights(self.model)
        return best

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        """All ranks log, save, evaluate and stop together, even if a callback on one asked for it.

        After the last step the checkpoint comes first: the evaluation may take minutes or fail.
        """
        self._agree_on_control()
        evaluate, save = self.control.should_evaluate, self.control.should_save
        if evaluate and save and self.state.global_step >= self.state.max_steps:
            self.control.should_evaluate = False
            super()._maybe_log_save_evaluate(*arguments, **options)
            self.control.should_evaluate = True
        super()._maybe_log_save_evaluate(*arguments, **options)
        if evaluate or save:  # more callbacks were called
            self._agree_on_control()

    def _agree_on_control(self) -> None:
        agreed = self.training.world.any_of([getattr(self.control, name) for name in _CONTROL])
        for name, value in zip(_CONTROL, agreed, strict=True):
            setattr(self.control, name, value)

    def save_last_step(self) -> None:
        """Write a checkpoint of the last step, unless there is one: early stopping saves none."""
        last = Path(self.args.output_dir) / f"{checkpoint.PREFIX}{self.state.global_step}"
        if self.training.world.any_of([not last.is_dir()])[0]:
            self._save_checkpoint(self.model, None)

    def load_state(self, folder: Path) -> None:
        """Restore weights, best weights and the history of a checkpoint, to train no further."""
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / checkpoint.STATE))
        self._load_callback_state()

    def evaluate_if_missing(self, folder: Path) -> None:
        """Evaluate the checkpoint in `folder` if its run was killed before it did that itself."""
        args, world, data = self.args, self.training.world, self.training.data
        state = TrainerState.load_from_json(str(folder / checkpoint.STATE))
        every = args.eval_steps if args.eval_strategy == "steps" else data.plan.steps_per_epoch
        due = state.global_step % int(every) == 0 or state.global_step >= args.max_steps
        if data.validation is None or not due or is_evaluated(state):
            return
        self.load_state(folder)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, MetricsFile):
                callback.on_train_begin(args, self.state, self.control)
        self._determine_best_metric(self.evaluate(), None)
        self._export_callback_states()
        checkpoint.stage_parts(self, folder, with_state=False)
        with world.raise_on_all_ranks():
            if world.rank == 0:
                checkpoint.add_evaluation(self, folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Our own checkpoint, because it must be whole or absent, with a checksum of each file."""
        self._export_callback_states()
        run, keep, step = (
            Path(self.args.output_dir),
            self.args.save_total_limit,
            self.state.global_step,
        )
        checkpoint.stage_parts(self, run / f"{checkpoint.PREFIX}{step}")
        with self.training.world.raise_on_all_ranks():
            if self.training.world.rank == 0:
                checkpoint.save(self, run, step, keep)

    def _export_callback_states(self) -> None:
        """Store the counters of callbacks such as early stopping in the trainer state."""
        for callback in [*self.callback_handler.callbacks, self.control]:
            name = type(callback).__name__
            if name in self.state.stateful_callbacks:
                self.state.stateful_callbacks[name] = callback.state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load what `_save_checkpoint` wrote, in place."""
        folder = Path(resume_from_checkpoint)
        self.best_weights = checkpoint.load_weights(self, folder)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        """Load a state that a CPU or a GPU wrote, because a run may resume on the other."""
        if checkpoint_folder is not None:
            checkpoint.load_optimizer(self, Path(checkpoint_folder))

    def _load_callback_state(self) -> None:
        """Restore attributes only: Transformers also restores the stop that a signal requested.

        It also keeps the old run's save_steps, eval_steps and logging_steps, whatever is set now.
        """
        self.state.compute_steps(self.args, self.args.max_steps)
        for callback in self.callback_handler.callbacks:
            stored = self.state.stateful_callbacks.get(type(callback).__name__, {})
            if isinstance(callback, ExportableState):
                vars(callback).update(stored.get("attributes", {}))

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        """Not on a GPU, because a CPU's checkpoint has no GPU state; every step seeds its own."""
        if self.training.model.device.type == "cpu":
            super()._load_rng_state(checkpoint_folder)


class Wrapped(torch.nn.Module):
    """A model that Trainer takes for wrapped already, so that it does not wrap it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


def trainer_for(
    config: Config, training: Training, user_callbacks: Iterable[TrainerCallback] = ()
) -> PlanTrainer:
    """The Trainer that `config` describes; the user's callbacks come first, on every rank."""
    settings, run = config.train, config.output.directory
    validates = training.data.validation is not None
    device, steps = training.model.device, total_steps(settings, training.data.plan)
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm or math.inf,  # 0 would also skip our check
        optim=optimizer_name(settings.optimizer, device),
        seed=settings.seed,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        eval_strategy=("steps" if settings.eval_steps else "epoch") if validates else "no",
        eval_steps=settings.eval_steps,
        metric_for_best_model=settings.best_metric if validates else None,
        greater_is_better=settings.best_metric == "accuracy" if validates else None,
        gradient_checkpointing=settings.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=device.type == "cpu",
    )
    callbacks: list[Any] = [*user_callbacks]
    if settings.early_stopping:
        # It warns that the best weights are not loaded; here the run itself keeps them.
        logging.getLogger("transformers.trainer_callback").setLevel(logging.ERROR)
        callbacks.append(transformers.EarlyStoppingCallback(settings.early_stopping))
    if training.world.rank == 0:
        callbacks += [MetricsFile(run / "metrics.jsonl"), ProgressLine(), *trackers(config)]
    trainer = PlanTrainer(training, arguments, callbacks, config.method.lora_plus_ratio)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer

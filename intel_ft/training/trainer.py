"""The Trainer whose batch is the plan's global step; called from training.run.

Transformers' Trainer keeps its callbacks, schedulers, optimizer and logging. What differs: the
data loader only counts steps, and `training_step` asks the plan for the examples of
`state.global_step`. So the position in the data is the step number, and a resumed run has nothing
to skip.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from intel_ft.backends.cpu import Optimize
from intel_ft.batching.plan import Plan, Step
from intel_ft.batching.row import Row, build_row
from intel_ft.data.examples import Examples
from intel_ft.distributed.world import World
from intel_ft.errors import IntelFTError
from intel_ft.host import devices
from intel_ft.host.cpu import rss_gib
from intel_ft.host.devices import CPU
from intel_ft.models.adapter import adapter_weights
from intel_ft.models.flops import StepCost
from intel_ft.models.loss import loss_sum
from intel_ft.training import checkpoint
from intel_ft.training.distillation import Teacher
from intel_ft.training.lora_plus import scale_learning_rate_of_b
from intel_ft.training.trainable import Trained


@dataclass
class Meter:
    """Work done and time taken: since the last logged line, or since the run began."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    flops: float = 0.0
    imbalance: float = 0.0
    exchange_seconds: float = 0.0

    def add(self, other: "Meter") -> None:
        """Add another meter's readings to this one's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def rates(self, gemm_rate: float) -> dict[str, float]:
        """The readings as metrics.jsonl names them."""
        seconds = max(self.seconds, 1e-9)
        return {
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "tokens_per_s": self.tokens / seconds,
            "mfu": self.flops / seconds / gemm_rate,
            "rank_imbalance": self.imbalance / max(self.steps, 1),
            "rss_gib": rss_gib(),
            "step_s": seconds / max(self.steps, 1),
            "exchange_s": self.exchange_seconds / max(self.steps, 1),
        }


@dataclass
class Workload:
    """What a run trains on: the plan over examples, the rows to evaluate on, and what they cost.

    trained: which weights; gemm_rate: of all ranks together, FLOP/s; dtype: of the products, None
    the base's; teacher: of a distillation; device: what multiplies; optimize: see
    backends.cpu.Backend.
    """

    plan: Plan
    examples: Examples
    cost: StepCost
    gemm_rate: float
    packed: bool
    world: World
    trained: Trained
    evaluation: Examples | None = None
    dtype: torch.dtype | None = None
    teacher: Teacher | None = None
    device: torch.device = CPU
    optimize: Optimize | None = None
    interval: Meter = field(default_factory=Meter)
    total: Meter = field(default_factory=Meter)


class PlanTrainer(Trainer):  # type: ignore[misc]
    """Trains `model` on a workload; saves whole checkpoints; keeps the best."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        work: Workload,
        callbacks: list[TrainerCallback],
        lora_plus_ratio: float = 1.0,
    ) -> None:
        super().__init__(model=model, args=args, eval_dataset=work.evaluation)
        self.lora_plus_ratio = lora_plus_ratio
        self.trained_parameters = sum(w.numel() for w in model.parameters() if w.requires_grad)
        self.work = work
        self.plan = work.plan
        self.best_weights: dict[str, Tensor] | None = None
        self.add_callback(_Clock(work))
        for callback in callbacks:
            self.add_callback(callback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Counts the steps of an epoch; the examples come from the plan."""
        steps: Any = range(self.plan.steps_per_epoch)
        return DataLoader(steps, collate_fn=lambda _: {}, generator=torch.Generator())

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of this rank's rows of step `state.global_step`.

        Returns the mean loss over the global batch's supervised tokens. Gradients are exchanged
        once, after the last row (a world of one rank has nothing to exchange).
        """
        step = self.plan.step(self.state.global_step)
        model.train()
        torch.manual_seed(self._seed(step.index))
        # fp16 would lose gradients as small as a mean's: there the sum's are divided afterwards.
        after = step.supervised_tokens if self.work.dtype == torch.float16 else 1
        loss = torch.zeros(1, device=self.work.device)
        for indices in step.rows(self.work.world.rank, self.work.world.size):
            row = build_row(self.work.examples, indices)
            part = self._loss_sum(row) / (step.supervised_tokens / after)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
            self.work.interval.flops += self.work.cost.flops(row)
        self._exchange(loss)
        if after != 1:
            for summed in (loss, *(w.grad for w in self._trained() if w.grad is not None)):
                summed.div_(after)
        self.work.interval.tokens += int(self.plan.lengths[step.examples].sum())
        self.work.interval.supervised_tokens += step.supervised_tokens
        self.work.interval.imbalance += _imbalance(step, self.work.world.size)
        if not math.isfinite(loss.item()):
            raise IntelFTError(
                f"the loss is {loss.item()} at step {step.index + 1}: lower train.learning_rate, "
                "then --resume from the last checkpoint"
            )
        return loss[0]

    def _loss_sum(self, row: Row) -> Tensor:
        work = self.work
        if work.teacher is not None:
            return work.teacher.loss_sum(self.model, row, packed=work.packed, dtype=work.dtype)
        return loss_sum(self.model, row, packed=work.packed, dtype=work.dtype)

    def _seed(self, step: int) -> int:
        """Dropout's own in each step and on each rank, so that nothing of it has to be saved."""
        return hash((self.args.seed, step, self.work.world.rank)) % 2**63

    def _exchange(self, loss: Tensor) -> None:
        """Sum the gradients, and with them the loss [1], over all ranks: one exchange a step. Its
        time has the waiting for slower ranks in it.
        """
        if self.work.world.size == 1:
            return
        devices.synchronize(self.work.device)
        began = time.perf_counter()
        gradients = []
        for weight in self._trained():
            if weight.grad is None:  # this rank's share was empty
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        parts = [loss, *(gradient.view(-1) for gradient in gradients)]
        summed = self.work.world.all_reduce(torch.cat(parts))
        sizes = [part.numel() for part in parts]
        for part, total in zip(parts, summed.split_with_sizes(sizes), strict=True):
            part.copy_(total)
        devices.synchronize(self.work.device)
        self.work.interval.exchange_seconds += time.perf_counter() - began

    def _trained(self) -> list[Tensor]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Transformers' own, with another learning rate for LoRA's B where that is asked for, and
        what the backend makes of it.
        """
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.lora_plus_ratio != 1.0:
            scale_learning_rate_of_b(optimizer, self.model, self.lora_plus_ratio)
        if self.work.optimize is not None:
            self.work.optimize(self.model, optimizer)
        return optimizer

    def _wrap_model(self, model: Any, *_: Any, **__: Any) -> Any:
        """Not in DDP: `training_step` exchanges the gradients. Trainer leaves a model alone that
        is wrapped already.
        """
        return Wrapped(model) if model is self.model else model

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, MFU and memory to every training line before callbacks see it."""
        if "loss" in logs:
            flops = torch.tensor([self.work.interval.flops], dtype=torch.float64)
            self.work.interval.flops = float(self.work.world.all_reduce(flops))
            logs.update(self.work.interval.rates(self.work.gemm_rate))
            logs.update(devices.peak_gib(self.work.device))
            self.work.total.add(self.work.interval)
            vars(self.work.interval).update(vars(Meter()))
        super().log(logs, start_time)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Mean loss and perplexity over the supervised tokens of the evaluation examples."""
        loss = mean_loss(self.model, self.work)
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_perplexity": math.exp(min(loss, 700.0)),
        }
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best: bool = super()._determine_best_metric(metrics, trial)
        if best:
            self.best_weights = adapter_weights(self.model)
        return best

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._export_callback_states()
        with self.work.world.raise_on_all_ranks():
            if self.work.world.rank == 0:
                run, keep = Path(self.args.output_dir), self.args.save_total_limit
                checkpoint.save(self, run, self.state.global_step, keep)

    def _export_callback_states(self) -> None:
        """Let callbacks such as early stopping put their counters into the trainer state."""
        for callback in [*self.callback_handler.callbacks, self.control]:
            name = type(callback).__name__
            if name in self.state.stateful_callbacks:
                self.state.stateful_callbacks[name] = callback.state()

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise IntelFTError(
                f"the gradient's norm is {float(norm)} at step {self.state.global_step + 1}: lower "
                "train.learning_rate, then --resume from the last checkpoint"
            )
        return norm

    def _load_callback_state(self) -> None:
        """Give early stopping its count back, and a user's callbacks theirs. Transformers' own
        would also bring back the `should_training_stop` with which a signal ended the run.
        """
        for callback in self.callback_handler.callbacks:
            stored = self.state.stateful_callbacks.get(type(callback).__name__, {})
            if isinstance(callback, ExportableState):
                vars(callback).update(stored.get("attributes", {}))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Not on a GPU: a CPU's checkpoint has no state of its, and every step seeds it."""
        if self.work.device.type == "cpu":
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.load_optimizer(self, Path(checkpoint_folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.work.trained.load(folder)
        self.best_weights = checkpoint.load_best(folder)


class Wrapped(torch.nn.Module):
    """A model as Trainer is to see it: wrapped."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Times each optimizer step, from its examples to its update, leaving out what is saved."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        devices.synchronize(self.work.device)
        self.work.interval.steps += 1
        self.work.interval.seconds += time.perf_counter() - self.began


@torch.no_grad()
def mean_loss(model: Any, work: Workload) -> float:
    """Mean cross-entropy over the supervised tokens of `work.evaluation`, dropout off."""
    examples = work.evaluation
    if examples is None:
        raise ValueError("this workload has no evaluation examples")
    plan = Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=len(examples),
        max_tokens_per_row=max(work.plan.max_tokens_per_row, int(examples.lengths.max())),
        seed=work.plan.seed,
        one_example_a_row=not work.packed,
    )
    was_training = model.training
    model.eval()
    step = plan.step(0)
    total = torch.zeros(1, dtype=torch.float64, device=work.device)
    for indices in step.rows(work.world.rank, work.world.size):
        row = build_row(examples, indices)
        total += loss_sum(model, row, packed=work.packed, dtype=work.dtype)
    model.train(was_training)
    return float(work.world.all_reduce(total)) / step.supervised_tokens


def _imbalance(step: Step, world_size: int) -> float:
    """How much the dearest share exceeds the mean one, 0 for a perfect split."""
    if world_size == 1:
        return 0.0
    lengths = [float(step.plan.lengths[share].sum()) for share in step.shares(world_size)]
    return max(lengths) / (sum(lengths) / world_size) - 1.0

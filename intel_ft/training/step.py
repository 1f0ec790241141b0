"""The training step, top to bottom: rows, loss, gradients, their sum over ranks; and validation.

Clipping, the optimizer's update and the schedule follow in Transformers' training loop.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from intel_ft.batching.plan import Plan, Step
from intel_ft.batching.row import Row, build_row
from intel_ft.errors import IntelFTError
from intel_ft.host import devices
from intel_ft.models.loss import loss_sum
from intel_ft.training.workload import Training


class NotFinite(IntelFTError):
    """The loss or the norm of its gradient is NaN or infinite (exit code 1)."""


def train_step(step: Step, training: Training) -> Tensor:
    """Add the gradient of the step's mean loss to the trained weights, equal on all ranks.

    Returns the mean cross-entropy over the global batch's supervised tokens, a float32 scalar.
    Raises NotFinite if it is not finite.
    """
    data, model, world = training.data, training.model, training.world
    totals = training.meter.interval
    model.network.train()
    # Each step and rank seeds its own dropout, so that a checkpoint stores no generator's state.
    torch.manual_seed(dropout_seed(data.plan.seed, step.index, world.rank))

    # Every loss is divided by the number of supervised tokens in the *global* batch, which the plan
    # knows beforehand. A mean over each row or rank would weight a token by how many others happen
    # to share its row or rank. With the global count, the gradients of all rows of all ranks add up
    # to the gradient of one mean over the batch, whatever the number of ranks and the row length.
    count = step.supervised_tokens
    # fp16 underflows on mean-scaled gradients: accumulate the sum, divide once at the end.
    row_divisor, final_divisor = (1, count) if model.dtype == torch.float16 else (count, 1)

    loss = torch.zeros(1, device=model.device)
    for indices in step.rows(world.rank, world.size):
        row = build_row(data.examples, indices)
        with _watching(training, row):
            row_loss = model.loss_sum(row, packed=data.packed) / row_divisor
        loss += row_loss.detach()
        if training.routing is not None and training.routing.coefficient:
            # A row's share of the step is its tokens', and so is that of its auxiliary loss.
            share = len(row.tokens) / float(data.plan.lengths[step.examples].sum())
            auxiliary = training.routing.auxiliary_loss(len(row.tokens)) * share
            totals.router_aux_loss += float(auxiliary.detach())
            row_loss = row_loss + auxiliary * final_divisor
        row_loss.backward()  # type: ignore[no-untyped-call]
        totals.flops += training.meter.cost.flops(row)

    if world.size > 1:
        totals.exchange_seconds += _sum_over_ranks(loss, training)
    if final_divisor != 1:
        gradients = [weight.grad for weight in model.trained_parameters()]
        for summed in (loss, *(gradient for gradient in gradients if gradient is not None)):
            summed.div_(final_divisor)

    totals.tokens += int(data.plan.lengths[step.examples].sum())
    totals.supervised_tokens += count
    totals.imbalance += rank_imbalance(step, world.size)
    if not math.isfinite(loss.item()):
        raise NotFinite(
            f"the loss is {loss.item()} at step {step.index + 1}: lower train.learning_rate, then "
            "--resume from the last checkpoint"
        )
    return loss[0]


def _watching(training: Training, row: Row) -> AbstractContextManager[None]:
    """Around a row's forward: counts the tokens of each expert of a mixture."""
    if training.routing is None:
        return nullcontext()
    return training.routing.watching(len(row.tokens))


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A seed for each step and rank, the same in every process and Python version."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _sum_over_ranks(loss: Tensor, training: Training) -> float:
    """All-reduce the gradients, and with them the loss [1], in place: one exchange per step.

    Returns the seconds that it took, which include waiting for slower ranks.
    """
    device = training.model.device
    devices.synchronize(device)
    began = time.perf_counter()
    parts = [loss]
    for weight in training.model.trained_parameters():
        if weight.grad is None:  # this rank's share was empty
            weight.grad = torch.zeros_like(weight)
        parts.append(weight.grad.view(-1))
    summed = training.world.all_reduce(torch.cat(parts))
    sizes = [part.numel() for part in parts]
    for part, total in zip(parts, summed.split_with_sizes(sizes), strict=True):
        part.copy_(total)
    devices.synchronize(device)
    return time.perf_counter() - began


def rank_imbalance(step: Step, world_size: int) -> float:
    """By how much the most expensive share exceeds the mean, in the plan's cost; 0 if perfect."""
    costs = [float(step.plan.costs(share).sum()) for share in step.shares(world_size)]
    return max(costs) / (sum(costs) / world_size) - 1.0


@torch.no_grad()
def validation_loss(training: Training) -> float:
    """Mean cross-entropy over the supervised tokens of the validation set, without dropout."""
    data, model, world = training.data, training.model, training.world
    examples = data.validation
    if examples is None:
        raise ValueError("this training has no validation set")
    plan = Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=len(examples),
        max_tokens_per_row=max(data.plan.max_tokens_per_row, int(examples.lengths.max())),
        seed=data.plan.seed,
        one_example_a_row=not data.packed,
    )
    was_training = model.network.training
    model.network.eval()
    step = plan.step(0)
    total = torch.zeros(1, dtype=torch.float64, device=model.device)
    for indices in step.rows(world.rank, world.size):
        row = build_row(examples, indices)
        total += loss_sum(model.network, row, packed=data.packed, dtype=model.dtype)
    model.network.train(was_training)
    return float(world.all_reduce(total)) / step.supervised_tokens

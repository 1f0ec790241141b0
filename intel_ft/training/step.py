"""The training step, top to bottom: rows, loss, gradients, their sum over ranks; and validation.

Clipping, the optimizer's update and the schedule follow in Transformers' training loop.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from intel_ft.batching.plan import IntArray, Plan, Step
from intel_ft.batching.row import Row
from intel_ft.batching.share import pack_evenly
from intel_ft.errors import IntelFTError
from intel_ft.host import devices
from intel_ft.models.loss import loss_sum
from intel_ft.templates.answers import Judged
from intel_ft.templates.examples import ExampleSet
from intel_ft.training.comparison import WIDTH, Comparison, measures
from intel_ft.training.workload import Training, TrainingData


class NotFinite(IntelFTError):
    """The loss or the norm of its gradient is NaN or infinite (exit code 1)."""


def train_step(step: Step, training: Training) -> Tensor:
    """Add the gradient of the step's mean loss to the trained weights, equal on all ranks.

    Returns the mean cross-entropy over the global batch's supervised tokens, weighted where the
    examples are, or the mean loss over its examples where answers are compared, a float32 scalar.
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
    # A preference method has one loss for each example, so it counts examples.
    comparison = data.comparison
    # An example's weight multiplies its tokens, in the sum and in what the sum is divided by.
    count = step.loss_weight if comparison is None else len(step.examples)
    divergence = _divergence(training, comparison, step)
    # fp16 underflows on mean-scaled gradients: accumulate the sum, divide once at the end.
    row_divisor, final_divisor = (1, count) if model.dtype == torch.float16 else (count, 1)

    sums = torch.zeros(1 if comparison is None else WIDTH, device=model.device)
    rows = step.rows(world.rank, world.size)
    for indices in rows:
        row = data.row(data.examples, indices)
        if (weights := step.plan.weights) is not None:
            row = replace(row, example_weights=weights[indices])
        sums_of = partial(_row_sums, training, row, indices, divergence)
        with _watching(training, row):
            of_row = model.compute(sums_of) / row_divisor
        sums += of_row.detach()
        row_loss = of_row[0]
        if training.routing is not None and training.routing.coefficient:
            # A row's share of the step is its tokens', and so is that of its auxiliary loss.
            share = len(row.tokens) / float(step.plan.lengths[step.examples].sum())
            auxiliary = training.routing.auxiliary_loss(len(row.tokens)) * share
            totals.router_aux_loss += float(auxiliary.detach())
            row_loss = row_loss + auxiliary * final_divisor
        row_loss.backward()  # type: ignore[no-untyped-call]
        totals.computed_tokens += len(row.tokens)
        totals.flops += training.meter.cost.flops(row)

    for _ in range(_missing_rows(step, len(rows), training)):
        (0.0 * model.compute(_placeholder(training))).backward()  # type: ignore[no-untyped-call]

    if world.size > 1:
        totals.exchange_seconds += _sum_over_ranks(sums, training)
    if final_divisor != 1:
        gradients = [weight.grad for weight in model.trained_parameters()]
        for summed in (sums, *(gradient for gradient in gradients if gradient is not None)):
            summed.div_(final_divisor)

    totals.tokens += int(step.plan.lengths[step.examples].sum())
    totals.supervised_tokens += step.supervised_tokens
    totals.imbalance += rank_imbalance(step, world.size)
    if comparison is not None:
        totals.compared += len(step.examples)
        totals.measures = totals.measures + len(step.examples) * sums.double().cpu().numpy()
    loss = sums[0].item()
    if not math.isfinite(loss):
        raise NotFinite(
            f"the loss is {loss} at step {step.index + 1}: lower train.learning_rate, then "
            "--resume from the last checkpoint"
        )
    return sums[0]


def _row_sums(training: Training, row: Row, indices: IntArray, divergence: float) -> Tensor:
    """The summed loss of a row, [1], or what a comparison sums of it, [WIDTH]."""
    data, model = training.data, training.model
    if data.comparison is None:
        return model.loss_sum(row, packed=data.packed)[None]
    return data.comparison.row_sums(
        model.network,
        row,
        indices,
        packed=data.packed,
        dtype=model.dtype,
        divergence=divergence,
    )


def _divergence(training: Training, comparison: Comparison | None, step: Step) -> float:
    """KTO's z of the step's global batch; 0 for other losses."""
    if comparison is None or not isinstance(comparison.examples, Judged):
        return 0.0
    data, model, world = training.data, training.model, training.world
    share = step.shares(world.size)[world.rank]
    rows = [[one] for one in range(len(share))]
    if data.packed:
        lengths = comparison.examples.others.lengths[share].tolist()
        rows = pack_evenly(lengths, max(data.plan.max_tokens_per_row, *lengths, 0))
    total = comparison.divergence_sum(
        model.network, [share[row] for row in rows], packed=data.packed, dtype=model.dtype
    )
    total = float(world.all_reduce(torch.tensor([total], dtype=torch.float64)))
    return max(0.0, total / len(step.examples))


def _watching(training: Training, row: Row) -> AbstractContextManager[None]:
    """Around a row's forward: counts the tokens of each expert of a mixture."""
    if training.routing is None:
        return nullcontext()
    return training.routing.watching(len(row.tokens))


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A seed for each step and rank, the same in every process and Python version."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _sum_over_ranks(sums: Tensor, training: Training) -> float:
    """All-reduce the gradients, and with them the loss and measures: one exchange per step.

    Gradients of sharded weights were summed row by row.

    Returns the seconds that it took, which include waiting for slower ranks.
    """
    device = training.model.device
    devices.synchronize(device)
    began = time.perf_counter()
    parts = [sums]
    sharded = training.model.shards is not None
    for weight in () if sharded else training.model.trained_parameters():
        if weight.grad is None:  # this rank's share was empty
            weight.grad = torch.zeros_like(weight)
        parts.append(weight.grad.view(-1))
    summed = training.world.all_reduce(torch.cat(parts))
    sizes = [part.numel() for part in parts]
    for part, total in zip(parts, summed.split_with_sizes(sizes), strict=True):
        part.copy_(total)
    devices.synchronize(device)
    return time.perf_counter() - began


def _missing_rows(step: Step, rows: int, training: Training) -> int:
    """How many more rows another rank has: all ranks gather sharded weights equally often."""
    if training.model.shards is None or training.world.size == 1:
        return 0
    return max(len(step.plan.rows(share)) for share in step.shares(training.world.size)) - rows


def _placeholder(training: Training) -> Callable[[], Tensor]:
    """The loss of a row of two tokens, computed for the other ranks' sake."""
    tokens, at = np.zeros(2, np.int64), np.zeros(1, np.int64)
    row = Row(tokens, np.arange(2), np.array([0, 2]), at, at)
    return partial(training.model.loss_sum, row, packed=training.data.packed)


def rank_imbalance(step: Step, world_size: int) -> float:
    """By how much the most expensive share exceeds the mean, in the plan's cost; 0 if perfect."""
    costs = [step.plan.load(share) for share in step.shares(world_size)]
    return max(costs) / (sum(costs) / world_size) - 1.0


@torch.no_grad()
def validation_loss(training: Training) -> float:
    """Mean cross-entropy over the supervised tokens of the validation set, without dropout."""
    data, model, world = training.data, training.model, training.world
    step, examples = _whole_validation_set(data)
    was_training = model.network.training
    model.network.eval()
    total = torch.zeros(1, dtype=torch.float64, device=model.device)
    rows = step.rows(world.rank, world.size)
    for indices in rows:
        row = data.row(examples, indices)
        total += model.compute(
            partial(loss_sum, model.network, row, packed=data.packed, dtype=model.dtype)
        )
    for _ in range(_missing_rows(step, len(rows), training)):
        model.compute(_placeholder(training))
    model.network.train(was_training)
    return float(world.all_reduce(total)) / step.supervised_tokens


@torch.no_grad()
def validation_comparison(training: Training) -> dict[str, float]:
    """The mean loss and the measures of a preference method's validation set, without dropout."""
    data, model, world = training.data, training.model, training.world
    comparison = data.validation_comparison
    assert comparison is not None
    step, examples = _whole_validation_set(data)
    was_training = model.network.training
    model.network.eval()
    divergence = _divergence(training, comparison, step)
    total = torch.zeros(WIDTH, dtype=torch.float64, device=model.device)
    for indices in step.rows(world.rank, world.size):
        total += comparison.row_sums(
            model.network,
            data.row(examples, indices),
            indices,
            packed=data.packed,
            dtype=model.dtype,
            divergence=divergence,
        )
    model.network.train(was_training)
    sums = world.all_reduce(total).cpu().numpy()
    return {"loss": float(sums[0]) / len(examples), **measures(sums, len(examples))}


def _whole_validation_set(data: TrainingData) -> tuple[Step, ExampleSet]:
    """The validation set, and one step that has all of it."""
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
        shared=None if data.plan.shared is None else examples,
    )
    return plan.step(0), examples

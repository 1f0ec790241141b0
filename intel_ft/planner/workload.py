"""What a run goes through: the lengths of its examples, read or assumed, and the rows of some of
its steps; called from insight.plan_inputs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intel_ft.batching.plan import Plan
from intel_ft.config import Config
from intel_ft.errors import IntelFTError, UserError
from intel_ft.models.load import load_tokenizer
from intel_ft.training.model_sizes import CountedModel
from intel_ft.training.setup import read_data

_SAMPLED = 24  # steps, spread over the run

Rows = list[tuple[npt.NDArray[np.int64], int]]
"""Of one rank in one step: the lengths of each row's segments, and its supervised tokens."""


@dataclass(frozen=True)
class AssumedData:
    """Examples instead of the config's data: how many, of how many tokens, half supervised."""

    examples: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, eq=False)
class ExampleLengths:
    """Tokens of each training example, all and supervised ones; tokens of all held-out examples;
    where this comes from. named: the first so many tokens of the vocabulary have all that the data
    names; None where it was not read.
    """

    lengths: npt.NDArray[np.int64]
    supervised: npt.NDArray[np.int64]
    validation_tokens: int
    source: str
    named: int | None = None


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """The plan over the examples, and how many steps and evaluations a run takes."""

    plan: Plan
    steps: int
    evaluations: int


def example_lengths(config: Config, assumed: AssumedData | None) -> ExampleLengths:
    """Read and tokenize the config's data, or take what is `assumed`; where the data cannot be
    read, examples of half of data.max_length are assumed, and `source` says why.
    """
    reason = ""
    if assumed is None:
        try:
            training, held_out = read_data(config, load_tokenizer(config.model))
        except IntelFTError as error:
            assumed, reason = AssumedData(), f" ({error})"
        else:
            data = training.examples
            return ExampleLengths(
                data.lengths,
                data.supervised_counts,
                0 if held_out is None else held_out.report.tokens,
                f"{config.data.train}: {len(data.lengths):,} examples",
                int(data.tokens.max()) + 1,
            )
    count = assumed.examples or config.train.global_batch_size
    tokens = assumed.tokens or max(8, config.data.max_length // 2)
    lengths = np.full(count, tokens, dtype=np.int64)
    source = f"assumed: {count:,} examples of {tokens} tokens, half supervised{reason}"
    return ExampleLengths(lengths, lengths // 2, 0, source)


def planned_run(
    config: Config, model: CountedModel, row_tokens: int, examples: ExampleLengths
) -> PlannedRun:
    """The run over the examples. Raises UserError where one is longer than a row's tokens."""
    longest = int(examples.lengths.max())
    if longest > row_tokens:
        raise UserError(
            f"an example has {longest} tokens, a row holds {row_tokens}: raise "
            "train.max_tokens_per_row"
        )
    plan = Plan(
        examples.lengths,
        examples.supervised,
        config.train.global_batch_size,
        row_tokens,
        config.train.seed,
        model.cost.quadratic_cost,
        one_example_a_row=not model.sizes.packs,
    )
    settings = config.train
    steps = settings.max_steps or max(1, round(settings.epochs * plan.steps_per_epoch))
    every = settings.eval_steps or plan.steps_per_epoch
    return PlannedRun(plan, steps, steps // every if examples.validation_tokens else 0)


def sampled_steps(work: PlannedRun, ranks: int) -> list[list[Rows]]:
    """Some of the run's steps, each a list over ranks of the rows that rank has."""
    chosen = np.unique(np.linspace(0, work.steps - 1, _SAMPLED).astype(int))
    plan = work.plan
    found = []
    for index in chosen.tolist():
        step = plan.step(index)
        shares = [plan.rows(share) for share in step.shares(ranks)]
        found.append(
            [[(plan.lengths[row], int(plan.supervised[row].sum())) for row in s] for s in shares]
        )
    return found

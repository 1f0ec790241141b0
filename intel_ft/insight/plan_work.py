"""What a run goes through: the lengths of its examples, read or assumed, and the rows of some of
its steps; called from insight.plan.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intel_ft.batching.plan import Plan
from intel_ft.config import Config
from intel_ft.errors import IntelFTError, UserError
from intel_ft.insight.plan_model import ModelPlan
from intel_ft.models.load import load_tokenizer
from intel_ft.training.setup import read_data

_SAMPLED = 24  # steps, spread over the run

Rows = list[tuple[npt.NDArray[np.int64], int]]
"""Of one rank in one step: the lengths of each row's segments, and its supervised tokens."""


@dataclass(frozen=True)
class Assumed:
    """Examples instead of the config's data: how many, of how many tokens, half supervised."""

    examples: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """The plan over the examples, how many steps a run takes, the tokens it evaluates on at a time
    and how often, and where the lengths come from. named: the first so many tokens of the
    vocabulary have all that the data names; None where it could not be read.
    """

    plan: Plan
    steps: int
    evaluation_tokens: int
    evaluations: int
    source: str
    named: int | None = None


def work_of(config: Config, model: ModelPlan, row_tokens: int, assumed: Assumed | None) -> Work:
    """Read and tokenize the config's data, or take what is `assumed`; where the data cannot be
    read, examples of half of data.max_length are assumed, and `source` says why.
    """
    evaluation, named = 0, None
    if assumed is None:
        try:
            training, held_out = read_data(config, load_tokenizer(config.model))
        except IntelFTError as error:
            assumed, reason = Assumed(), f" ({error})"
        else:
            lengths = training.examples.lengths
            supervised = training.examples.supervised_counts
            named = int(training.examples.tokens.max()) + 1
            evaluation = 0 if held_out is None else held_out.report.tokens
            source = f"{config.data.train}: {len(lengths):,} examples"
    else:
        reason = ""
    if assumed is not None:
        count = assumed.examples or config.train.global_batch_size
        tokens = assumed.tokens or max(8, config.data.max_length // 2)
        lengths = np.full(count, tokens, dtype=np.int64)
        supervised = lengths // 2
        source = f"assumed: {count:,} examples of {tokens} tokens, half supervised{reason}"
    if int(lengths.max()) > row_tokens:
        raise UserError(
            f"an example has {int(lengths.max())} tokens, a row holds {row_tokens}: raise "
            "train.max_tokens_per_row"
        )
    plan = Plan(
        lengths,
        supervised,
        config.train.global_batch_size,
        row_tokens,
        config.train.seed,
        model.cost.quadratic_cost,
        one_example_a_row=not model.sizes.packs,
    )
    settings = config.train
    steps = settings.max_steps or max(1, round(settings.epochs * plan.steps_per_epoch))
    every = settings.eval_steps or plan.steps_per_epoch
    return Work(plan, steps, evaluation, steps // every if evaluation else 0, source, named)


def sampled_steps(work: Work, ranks: int) -> list[list[Rows]]:
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

"""The work of a run: its steps, and the rows of some of them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from intel_ft.batching.plan import IntArray, Plan
from intel_ft.config import Config
from intel_ft.planner.lengths import ExampleLengths
from intel_ft.training.decide import make_plan, sampled_steps, total_steps
from intel_ft.training.model_sizes import CountedModel
from intel_ft.training.shared_prefixes import why_not_shared


class PlannedRow(NamedTuple):
    """The work of a row.

    segments: tokens of each, int64; squares: as batching.row.Row.squares; supervised: tokens;
    read: tokens of its examples, more than it computes where they share beginnings.
    """

    segments: IntArray
    squares: int
    supervised: int
    read: int

    @property
    def tokens(self) -> int:
        """Tokens that the row computes."""
        return int(self.segments.sum())


Rows = list[PlannedRow]
"""The rows of one rank in one step."""


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """The batch plan over the examples, and the number of steps and evaluations of the run.

    answers: segments that an example is in a row, assumed to be of equal length.
    """

    plan: Plan
    steps: int
    evaluations: int
    answers: int = 1


def planned_run(config: Config, model: CountedModel, examples: ExampleLengths) -> PlannedRun:
    """The run over the examples. Raises UserError if one is longer than a row may be."""
    packs = model.sizes.packs
    not_shared = why_not_shared(config, model.description, packed=packs)
    plan = make_plan(
        config,
        examples.lengths,
        examples.supervised,
        model.cost,
        packed=packs,
        parts=examples.parts,
        shared=None if not_shared else examples.examples,
        examples=None if examples.repeats else examples.examples,
    )
    steps = total_steps(config.train, plan)
    every = config.train.eval_steps or plan.steps_per_epoch
    evaluations = steps // every if examples.validation_tokens else 0
    return PlannedRun(plan, steps, evaluations, 2 if config.method.compares == "pairs" else 1)


def sampled_rows(run: PlannedRun, ranks: int) -> list[list[Rows]]:
    """The rows of some of the run's steps: for each step a list over ranks."""
    return [
        [rows_of(run.plan, share, run.answers) for share in step.shares(ranks)]
        for step in sampled_steps(run.plan, run.steps)
    ]


def rows_of(plan: Plan, examples: IntArray, answers: int = 1) -> Rows:
    """The rows that these examples are packed into, each of so many segments."""
    return [_planned_row(plan, row, answers) for row in plan.rows(examples)]


def _planned_row(plan: Plan, row: IntArray, answers: int) -> PlannedRow:
    read, supervised = int(plan.lengths[row].sum()), int(plan.supervised[row].sum())
    families = plan.families(row)
    if families is None:
        lengths = np.repeat(-(-plan.lengths[row] // answers), answers)
        return PlannedRow(lengths, int((lengths**2).sum()), supervised, read)
    starts, ends = np.array(families.segments(), dtype=np.int64).T
    return PlannedRow(ends - starts, int((ends**2 - starts**2).sum()), supervised, read)

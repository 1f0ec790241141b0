"""The work of a run: lengths of its examples (read or assumed), and rows of sampled steps."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from intel_ft.batching.plan import IntArray, Plan
from intel_ft.config import Config
from intel_ft.data.mixture import Part
from intel_ft.data.stream import Stream
from intel_ft.data.tokenized import Tokenized
from intel_ft.errors import IntelFTError
from intel_ft.models.load import load_tokenizer
from intel_ft.templates.examples import ExampleSet
from intel_ft.training.decide import make_plan, sampled_steps, total_steps
from intel_ft.training.model_sizes import CountedModel
from intel_ft.training.setup import read_data
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


@dataclass(frozen=True)
class AssumedData:
    """Data assumed in place of the config's: examples, and tokens of each; half are supervised."""

    examples: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, eq=False)
class ExampleLengths:
    """Tokens of each training example, and of the whole validation set.

    source: where the numbers come from. named: the highest token id in the data plus one. parts:
    what an epoch takes from each source, where they have weights. examples: the data. `named` and
    `examples` are None if the data was not read.
    """

    lengths: npt.NDArray[np.int64]
    supervised: npt.NDArray[np.int64]
    validation_tokens: int
    source: str
    named: int | None = None
    parts: tuple[Part, ...] = ()
    examples: ExampleSet | None = None


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """The batch plan over the examples, and the number of steps and evaluations of the run.

    answers: segments that an example is in a row, assumed to be of equal length.
    """

    plan: Plan
    steps: int
    evaluations: int
    answers: int = 1


def example_lengths(config: Config, assumed: AssumedData | None) -> ExampleLengths:
    """Read and tokenize the config's data, or use the `assumed` data.

    If the data cannot be read, examples of half of data.max_length are assumed, and `source` has
    the reason.
    """
    reason = ""
    if assumed is None:
        try:
            training, validation = read_data(config, load_tokenizer(config.model))
        except IntelFTError as error:
            assumed, reason = AssumedData(), f" ({error})"
        else:
            data = training.examples
            return ExampleLengths(
                data.lengths,
                data.supervised_counts,
                0 if validation is None else validation.report.tokens,
                f"{config.data.train_name}: {len(data):,} examples{_mixed(training)}",
                data.highest_id + 1,
                training.parts,
                data,
            )
    count = assumed.examples or config.train.global_batch_size
    tokens = assumed.tokens or max(8, config.data.max_length // 2)
    lengths = np.full(count, tokens, dtype=np.int64)
    source = f"assumed: {count:,} examples of {tokens} tokens, half supervised{reason}"
    return ExampleLengths(lengths, lengths // 2, 0, source)


def _mixed(training: Tokenized) -> str:
    """Where the examples are not all of one source: what an epoch takes from each."""
    if isinstance(training.examples, Stream):
        return ", the first buffer of a stream"
    if len(training.reports) == 1:
        return ""
    shares = (f"{100 * one['share']:.1f} % {one['source']}" for one in training.shares())
    return f" ({', '.join(shares)})"


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

"""The plan: from (seed, step) to a step's examples, whatever the number of ranks.

The unit of training is the optimizer step's set of examples. An epoch is a permutation of all
examples drawn from (seed, epoch), cut into runs of `global_batch_size`; the last step of an epoch
takes what is left, so nothing is dropped or seen twice. Ranks only share a step's examples. Where
sources have weights, an epoch takes its part of each instead (batching.order). Answers to one
prompt follow each other in that order, so that they come into one step and share their prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from intel_ft.batching.families import Families
from intel_ft.batching.order import epoch_order, neighbours
from intel_ft.batching.share import pack_evenly, split_by_cost
from intel_ft.data.mixture import Part
from intel_ft.errors import UserError
from intel_ft.templates.examples import ExampleSet

IntArray = npt.NDArray[np.int64]

_PROMPTS_IN_STEP = 4
"""A step has answers to at least as many prompts: with fewer, its gradient is that of few texts."""


@dataclass(frozen=True)
class Step:
    """One optimizer step: its examples and the number of supervised tokens in all of them."""

    plan: "Plan"
    index: int
    examples: IntArray
    supervised_tokens: int
    _shares: dict[int, list[IntArray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def loss_weight(self) -> float:
        """What the summed loss is divided by: supervised tokens times their examples' weights."""
        if self.plan.weights is None:
            return self.supervised_tokens
        counts = self.plan.supervised[self.examples]
        return float((counts * self.plan.weights[self.examples].astype(np.float64)).sum())

    def shares(self, world_size: int) -> list[IntArray]:
        """The examples of each rank; their union is `examples`, whatever `world_size` is.

        They are found once: finding what examples have in common takes long for large batches.
        """
        if world_size not in self._shares:
            self._shares[world_size] = self._split(world_size)
        return self._shares[world_size]

    def _split(self, world_size: int) -> list[IntArray]:
        if (families := self.plan.families(self.examples)) is not None:
            return [self.examples[part] for part in families.shares(world_size)]
        costs = self.plan.costs(self.examples).tolist()
        return [self.examples[part] for part in split_by_cost(costs, world_size)]

    def rows(self, rank: int, world_size: int) -> list[IntArray]:
        """The packed rows of one rank, each an array of example indices; empty if it has none."""
        share = self.shares(world_size)[rank]
        return self.plan.rows(share)


@dataclass(frozen=True, eq=False)
class Plan:
    """All steps of a run, each computed when asked for.

    lengths, supervised: tokens and supervised tokens of each example, int64 [examples].
    quadratic_cost: attention's cost per squared token, in units of a token's linear cost.
    one_example_a_row: for models whose attention cannot be packed. parts: what an epoch takes from
    each source, where sources have weights. shared: the examples, if beginnings that those of a row
    have in common are computed once; else None. weights: of each example in the loss, float32
    [examples]; None: 1 each. together: of each example the first one that answers the same prompt,
    int64 [examples]; None: the order is random.
    """

    lengths: IntArray
    supervised: IntArray
    global_batch_size: int
    max_tokens_per_row: int
    seed: int
    quadratic_cost: float = 0.0
    one_example_a_row: bool = False
    parts: tuple[Part, ...] = ()
    shared: ExampleSet | None = None
    weights: npt.NDArray[np.float32] | None = None
    together: IntArray | None = None
    _epochs: dict[int, IntArray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.lengths) == 0:
            raise UserError("no examples to train on")
        if (longest := int(self.lengths.max())) > self.max_tokens_per_row:
            raise UserError(
                f"an example has {longest} tokens, but a row holds {self.max_tokens_per_row}: "
                "raise train.max_tokens_per_row or lower data.max_length"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, which has as many examples as there are."""
        return -(-len(self.lengths) // self.global_batch_size)

    def step(self, index: int) -> Step:
        """Step `index` of the run, counted from 0 across all epochs."""
        epoch, within = divmod(index, self.steps_per_epoch)
        start = within * self.global_batch_size
        examples = self._order(epoch)[start : start + self.global_batch_size]
        return Step(self, index, examples, int(self.supervised[examples].sum()))

    def _order(self, epoch: int) -> IntArray:
        """The examples of an epoch; the last epoch's are kept."""
        if epoch not in self._epochs:
            order = epoch_order(self.seed, epoch, len(self.lengths), self.parts)
            if self.together is not None:
                most = max(1, self.global_batch_size // _PROMPTS_IN_STEP)
                order = neighbours(order, self.together, most)
            self._epochs.clear()
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def steps(self, start: int, end: int) -> Iterator[Step]:
        """Steps `start` to `end - 1`."""
        for index in range(start, end):
            yield self.step(index)

    def rows(self, examples: IntArray) -> list[IntArray]:
        """Pack any set of examples into rows of at most `max_tokens_per_row` tokens."""
        if self.one_example_a_row:
            return list(examples[:, None])
        if (families := self.families(examples)) is not None:
            return [examples[row] for row in families.rows(self.max_tokens_per_row)]
        lengths = self.lengths[examples].tolist()
        return [examples[row] for row in pack_evenly(lengths, self.max_tokens_per_row)]

    def families(self, examples: IntArray) -> Families | None:
        """What these examples have in common; None if nothing that a row computes once."""
        if self.shared is None or len(examples) == 0:
            return None
        families = Families(self.shared, examples, self.quadratic_cost)
        return families if families.saved else None

    def costs(self, examples: IntArray) -> npt.NDArray[np.float64]:
        """What each of these examples costs to train on alone, a token's linear cost being 1."""
        lengths = self.lengths[examples].astype(np.float64)
        return lengths + self.quadratic_cost * lengths**2

    def saved(self, row: IntArray) -> int:
        """Tokens that this row does not compute again."""
        families = self.families(row)
        return 0 if families is None else families.saved

    def load(self, examples: IntArray) -> float:
        """What all of these examples cost as one row."""
        families = self.families(examples)
        if families is None:
            return float(self.costs(examples).sum())
        return families.cost(range(len(examples)))

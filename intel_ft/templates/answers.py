"""Tokenized answers that someone compared or judged: what preference methods train on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from intel_ft.templates.examples import Examples, ExampleSet

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pairs(Examples):
    """Pairs of answers to one prompt: an example is the chosen one's tokens, then the rejected's.

    Both have the prompt in front of them. chosen_lengths: tokens of the first, int64 [pairs].
    """

    chosen_lengths: IntArray

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """See Examples."""
        return super().hashes + self.chosen_lengths.astype(np.uint64)

    @cached_property
    def answers(self) -> Examples:
        """Each answer as an example: those of pair i are 2 i (chosen) and 2 i + 1 (rejected)."""
        offsets = np.empty(2 * len(self) + 1, np.int64)
        offsets[::2] = self.offsets
        offsets[1::2] = self.offsets[:-1] + self.chosen_lengths
        return Examples(self.tokens, self.supervised, offsets)

    @property
    def longest(self) -> int:
        """See Examples: of the longest answer."""
        return self.answers.longest

    def segments(self, indices: IntArray) -> tuple[Examples, IntArray]:
        """The answers that these pairs are in a row: two of each."""
        return self.answers, (2 * indices[:, None] + np.arange(2)).reshape(-1)

    def select(self, indices: IntArray) -> "Pairs":
        """See Examples."""
        part = super().select(indices)
        chosen = self.chosen_lengths[indices]
        return Pairs(**vars(part), chosen_lengths=chosen)


@dataclass(frozen=True, kw_only=True)
class Judged(Examples):
    """Answers that are good or bad. good: bool [examples].

    others: each prompt with the answer to another one, from which KTO estimates how far the model
    has moved from its reference.
    """

    good: npt.NDArray[np.bool_]
    others: Examples

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """See Examples."""
        return super().hashes + self.good.astype(np.uint64) + self.others.hashes

    @property
    def answers(self) -> Examples:
        """Each answer as an example."""
        return self

    def segments(self, indices: IntArray) -> tuple[Examples, IntArray]:
        """The answers that these examples are in a row: themselves."""
        return self, indices

    def select(self, indices: IntArray) -> "Judged":
        """See Examples."""
        part, others = super().select(indices), self.others.select(indices)
        return Judged(**vars(part), good=self.good[indices], others=others)


Compared = Pairs | Judged


def segments_in(examples: ExampleSet, indices: IntArray) -> tuple[ExampleSet, IntArray]:
    """The segments that examples are in a row: of which set, and which of it."""
    return examples.segments(indices) if isinstance(examples, Pairs) else (examples, indices)


def pairs_of(answers: Examples) -> Pairs:
    """Pairs of neighbours: the answers 2 i (chosen) and 2 i + 1 (rejected)."""
    lengths = answers.lengths
    every = (answers.tokens, answers.supervised, answers.offsets[::2], answers.firsts[::2])
    return Pairs(*every, chosen_lengths=lengths[::2])


def judged(answers: Examples, good: npt.NDArray[np.bool_], longest: int) -> Judged:
    """The answers with others to their prompts, of at most `longest` tokens.

    The others come from a cycle through all answers in a random order that never changes; where the
    next one answers the same prompt, one of those after it is taken.
    """
    count = len(answers)
    starts = [int(np.flatnonzero(answers[index][1])[0]) for index in range(count)]
    prompts = [answers[index][0][: starts[index]].tobytes() for index in range(count)]
    order = np.random.default_rng(0).permutation(count).tolist()
    parts: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]] = [answers[0]] * count
    for place, index in enumerate(order):
        following = (order[(place + step) % count] for step in range(1, min(count, 16)))
        other = next((one for one in following if prompts[one] != prompts[index]), None)
        if other is None:
            other = order[(place + 1) % count]
        tokens, supervised = answers[other]
        end = starts[other] + longest - starts[index]
        answer = slice(starts[other], end)
        start = slice(0, starts[index])
        parts[index] = (
            np.concatenate((answers[index][0][start], tokens[answer])),
            np.concatenate((answers[index][1][start], supervised[answer])),
        )
    lengths = [len(tokens) for tokens, _ in parts]
    others = Examples(
        np.concatenate([tokens for tokens, _ in parts]),
        np.concatenate([supervised for _, supervised in parts]),
        np.cumsum([0, *lengths], dtype=np.int64),
    )
    return Judged(**vars(answers), good=good, others=others)

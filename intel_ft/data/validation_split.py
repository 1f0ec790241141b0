"""Splits off a validation set (data.eval_fraction), and counts what it shares with training.

What must not be in both sets is a unit: all rows with one prompt, or, without a prompt, with one
text. An instruction that many rows begin with is no prompt; there, too, equal texts are a unit.
Texts and prompts are compared by hashes of their tokens, which the token cache holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intel_ft.data.prepare import Prepared
from intel_ft.data.prompts import MOST_ANSWERS
from intel_ft.errors import UserError
from intel_ft.templates.examples import ExampleSet, text_hashes

IntArray = npt.NDArray[np.int64]
HashArray = npt.NDArray[np.uint64]


def split_fraction(prepared: Prepared, fraction: float, seed: int) -> tuple[Prepared, Prepared]:
    """Split one source into (training set, validation set); see `split_places`."""
    name = prepared.report.source
    ((kept, held_out),) = split_places([prepared.examples], fraction, seed, [name])
    return prepared.select(kept), prepared.select(held_out)


def split_places(
    sets: Sequence[ExampleSet], fraction: float, seed: int, names: Sequence[str]
) -> list[tuple[IntArray, IntArray]]:
    """Of each set the places of training and validation set among its examples, in order.

    Equal seed and data give an equal split. fraction: share of each set's rows in the validation
    set, rounded. It takes units in a random order while all of their rows fit, or else the smallest
    one; a unit that an earlier set has is on the side where that one put it. So a later set may
    give more than its share, or nothing. names: of the sources.

    Raises UserError if a set has fewer than two rows, or would leave nothing to train on.
    """
    rows = [_Rows(examples) for examples in sets]
    sizes = []
    for one, name in zip(rows, names, strict=True):
        if len(one.texts) < 2:
            raise UserError(
                f"{name}: data.eval_fraction needs at least two examples, because one cannot be"
                " split: set data.eval, or add examples"
            )
        sizes.append(min(max(round(len(one.texts) * fraction), 1), len(one.texts) - 1))
    most = (max(MOST_ANSWERS, size) for size in sizes)
    instructions = np.concatenate([one.instructions(n) for one, n in zip(rows, most, strict=True)])
    kept_units = held_out_units = np.empty(0, np.uint64)
    places = []
    for examples, one, size, name in zip(sets, rows, sizes, names, strict=True):
        keys, placed = one.units(instructions), np.union1d(kept_units, held_out_units)
        if (keys == keys[0]).all() and not np.isin(keys[0], placed):
            keys = one.texts  # there is but one prompt
        held_out = _held_out(keys, size, seed, placed, held_out_units)
        if held_out.all():
            raise UserError(
                f"{name}: earlier sources have all of its prompts, and data.eval_fraction set them"
                " aside, so that nothing is left to train on: name it first in data.train"
            )
        kept_units = np.union1d(kept_units, keys[~held_out])
        held_out_units = np.setdiff1d(np.union1d(held_out_units, keys[held_out]), kept_units)
        in_validation = held_out[np.cumsum(examples.firsts) - 1]
        places.append((np.flatnonzero(~in_validation), np.flatnonzero(in_validation)))
    return places


def _held_out(
    keys: HashArray, size: int, seed: int, placed: HashArray, held_out: HashArray
) -> npt.NDArray[np.bool_]:
    """Which rows the validation set takes: about `size`. keys: the unit of each row.

    placed: units that earlier sets have; held_out: those of them that the validation set has.
    """
    units, first, unit_of = np.unique(keys, return_index=True, return_inverse=True)
    if len(units) == 1 and not np.isin(units[0], placed):  # all rows are alike
        units, first, unit_of = keys, np.arange(len(keys)), np.arange(len(keys))
    in_order = np.argsort(first)  # of the source, so that the permutation follows from it alone
    counts = np.bincount(unit_of)
    chosen = np.isin(units, held_out)
    free = ~np.isin(units, placed)
    room = size - int(counts[chosen].sum())
    shuffled = in_order[np.random.default_rng(seed).permutation(len(units))]
    candidates = shuffled[free[shuffled]].tolist()
    for unit in candidates:
        if room <= 0:
            break
        if counts[unit] <= room:
            chosen[unit] = True
            room -= int(counts[unit])
    if candidates and not chosen.any():
        chosen[min(candidates, key=lambda unit: int(counts[unit]))] = True
    return chosen[unit_of]


@dataclass(frozen=True)
class Shared:
    """What a validation set shares with the training set, in rows of the validation set.

    prompts: those whose prompt, or text where they have none, the training set has; texts: those
    of them that are the same in every token.
    """

    rows: int
    prompts: int
    texts: int

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} of {self.rows:,} validation examples have the prompt or the text of"
            f" a training example, and {self.texts:,} equal one in every token: the validation loss"
            " is too low; remove them from one of the sets"
        )


def shared_rows(training: ExampleSet, validation: ExampleSet) -> Shared:
    """What the validation set shares with the training set; both are compared row by row."""
    trained, held_out = _Rows(training), _Rows(validation)
    instructions = trained.instructions(min(MOST_ANSWERS, len(trained.texts) - 1))
    texts = np.isin(held_out.texts, trained.texts)
    prompts = np.isin(held_out.units(instructions), trained.units(instructions))
    return Shared(len(texts), int((prompts | texts).sum()), int(texts.sum()))


class _Rows:
    """The rows of a source, each as its first example. prompts: 0 where a row has none."""

    def __init__(self, examples: ExampleSet) -> None:
        firsts = examples.firsts
        self.prompts: HashArray = examples.prompts[firsts]
        self.texts: HashArray = text_hashes(examples)[firsts]

    def instructions(self, most: int) -> HashArray:
        """The prompts that more than `most` rows have."""
        prompts, counts = np.unique(self.prompts, return_counts=True)
        return prompts[counts > most]

    def units(self, instructions: HashArray) -> HashArray:
        """The unit of each row: its prompt, or its text if that is none or an instruction."""
        alone = (self.prompts == 0) | np.isin(self.prompts, instructions)
        return np.where(alone, self.texts, self.prompts)

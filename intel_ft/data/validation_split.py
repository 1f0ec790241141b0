"""Splits off a validation set: data.eval_fraction."""

import numpy as np
import numpy.typing as npt

from intel_ft.data.prepare import Prepared
from intel_ft.data.prompts import MOST_ANSWERS, first_with_prompt
from intel_ft.errors import UserError
from intel_ft.templates.examples import ExampleSet

IntArray = npt.NDArray[np.int64]


def split_fraction(prepared: Prepared, fraction: float, seed: int) -> tuple[Prepared, Prepared]:
    """Split into (training set, validation set); equal seed and data give an equal split.

    fraction: share of the rows in the validation set, rounded; each set gets at least one. Rows
    with the same prompt stay together. Both sets keep the order of the source. Raises UserError if
    there are fewer than two examples.
    """
    kept, held_out = split_places(prepared.examples, fraction, seed, prepared.report.source)
    return prepared.select(kept), prepared.select(held_out)


def split_places(
    examples: ExampleSet, fraction: float, seed: int, source: str
) -> tuple[IntArray, IntArray]:
    """The places of training and validation set among the examples; see `split_fraction`.

    The examples of one row stay together, and so do rows with the same prompt: the validation set
    takes prompts in a random order while all of their rows fit, or else the smallest one.
    """
    row_of = np.cumsum(examples.firsts) - 1
    total = int(row_of[-1]) + 1
    if total < 2:
        raise UserError(
            f"{source}: data.eval_fraction needs at least two examples, because one cannot be"
            " split: set data.eval, or add examples"
        )
    validation_size = min(max(round(total * fraction), 1), total - 1)
    unit_of, sizes = _units(examples, total, max(MOST_ANSWERS, validation_size))
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    held_out = np.zeros(len(sizes), np.bool_)
    room = validation_size
    for unit in shuffled.tolist():
        if sizes[unit] <= room:
            held_out[unit] = True
            room -= int(sizes[unit])
        if room == 0:
            break
    if not held_out.any():
        held_out[min(shuffled.tolist(), key=lambda unit: int(sizes[unit]))] = True
    in_validation = held_out[unit_of[row_of]]
    return np.flatnonzero(~in_validation), np.flatnonzero(in_validation)


def _units(examples: ExampleSet, total: int, most: int) -> tuple[IntArray, IntArray]:
    """The unit that each of `total` rows belongs to, and the rows of each unit.

    Rows with one prompt are a unit, unless more than `most` rows, or all of them, have it.
    """
    rows = np.arange(total)
    first_with = first_with_prompt(examples, np.flatnonzero(examples.firsts))
    counts = np.bincount(first_with, minlength=total)[first_with]
    unit = np.where(counts > min(most, total - 1), rows, first_with)
    _, unit_of, sizes = np.unique(unit, return_inverse=True, return_counts=True)
    return unit_of, sizes

"""Splits off a validation set: data.eval_fraction."""

import numpy as np
import numpy.typing as npt

from intel_ft.data.prepare import Prepared
from intel_ft.errors import UserError
from intel_ft.templates.examples import ExampleSet


def split_fraction(prepared: Prepared, fraction: float, seed: int) -> tuple[Prepared, Prepared]:
    """Split into (training set, validation set); equal seed and data give an equal split.

    fraction: share of the rows in the validation set, rounded; each set gets at least one. Both
    keep the order of the source. Raises UserError if there are fewer than two examples.
    """
    kept, held_out = split_places(prepared.examples, fraction, seed, prepared.report.source)
    return prepared.select(kept), prepared.select(held_out)


def split_places(
    examples: ExampleSet, fraction: float, seed: int, source: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places of training and validation set among the examples; see `split_fraction`.

    The examples of one row stay together.
    """
    row_of = np.cumsum(examples.firsts) - 1
    total = int(row_of[-1]) + 1
    if total < 2:
        raise UserError(
            f"{source}: data.eval_fraction needs at least two examples, because one cannot be"
            " split: set data.eval, or add examples"
        )
    validation_size = min(max(round(total * fraction), 1), total - 1)
    shuffled = np.random.default_rng(seed).permutation(total)
    held_out = np.zeros(total, np.bool_)
    held_out[shuffled[:validation_size]] = True
    return np.flatnonzero(~held_out[row_of]), np.flatnonzero(held_out[row_of])

"""The weight of each example in the training loss, from a column of its row (data.prepare)."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from intel_ft.errors import UserError
from intel_ft.sources.rows import Rows


def example_weights(
    rows: Rows, column: str | None, places: Sequence[int]
) -> npt.NDArray[np.float32] | None:
    """The weights of examples that come from the rows at `places`; None without a column.

    Raises UserError for a column that is not there, and for a value that is no number above 0.
    """
    if column is None:
        return None
    if column not in rows.columns:
        raise UserError(
            f"{rows.source}: data.weight_column={column}: there is no such column; the columns are"
            f" {', '.join(rows.columns)}"
        )
    values = [value for (value,) in rows.cells([column])]
    weights = np.array([_number(values[place]) for place in places], np.float32)
    if len(wrong := np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))):
        place = places[wrong[0]]
        raise UserError(
            f"{rows.where(place)}: {column} is {values[place]!r}: a weight is a number above 0:"
            " correct it, or leave out such rows"
        )
    return weights


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan

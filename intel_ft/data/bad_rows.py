"""Rows that cannot be used: counted, the first few shown, refused or left out (data.on_bad)."""

from dataclasses import dataclass

from intel_ft.data.sources import Rows
from intel_ft.errors import UserError

_SHOWN = 3


class BadRow(Exception):
    """One row cannot be used. The text is the column and what is wrong with its cell."""


@dataclass(frozen=True)
class BadRows:
    """The unusable rows of a source: what is wrong with each, by its index from 0."""

    rows: Rows
    problems: dict[int, str]

    def __len__(self) -> int:
        return len(self.problems)

    def examples(self) -> str:
        """File, row and problem of the first few rows."""
        shown = [
            f"{self.rows.where(index)}: {problem}"
            for index, problem in list(self.problems.items())[:_SHOWN]
        ]
        return "; ".join([*shown, *(["..."] if len(self) > _SHOWN else [])])

    def error(self) -> UserError:
        """The refusal: the first few rows, how many there are, and what to do."""
        if len(self) == 1:
            return UserError(f"{self.examples()}: correct or remove this row{self._drop()}")
        return UserError(
            f"{self.examples()}: {len(self):,} of {len(self.rows):,} rows are bad: correct or"
            f" remove them{self._drop()}"
        )

    def _drop(self) -> str:
        return ", or set data.on_bad to drop" if len(self) < len(self.rows) else ""

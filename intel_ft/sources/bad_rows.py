"""Rows that cannot be used: counted, the first few shown, refused or left out (data.on_bad)."""

from dataclasses import dataclass

from intel_ft.errors import UserError
from intel_ft.sources.rows import Rows

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
        """The first few problems, each with the first few rows that have it.

        Rows are named with the file if there are several.
        """
        found: dict[str, list[int]] = {}
        for index, problem in self.problems.items():
            found.setdefault(problem, []).append(index)
        shown = [f"{self._names(rows)}: {text}" for text, rows in list(found.items())[:_SHOWN]]
        return "; ".join([*shown, *(["..."] if len(found) > _SHOWN else [])])

    def _names(self, indices: list[int]) -> str:
        names = [self.rows.where(i).removeprefix(f"{self.rows.source} ") for i in indices[:_SHOWN]]
        more = len(indices) - len(names)
        return ", ".join(names) + (f" and {more:,} more" if more else "")

    def error(self) -> UserError:
        """The refusal: the first few rows, how many there are, and what to do."""
        drop = ", or set data.on_bad to drop" if len(self) < len(self.rows) else ""
        if len(self) == 1:
            index, problem = next(iter(self.problems.items()))
            return UserError(
                f"{self.rows.where(index)}: {problem}: correct or remove this row{drop}"
            )
        return UserError(
            f"{self.rows.name}: {len(self):,} of {len(self.rows):,} rows cannot be used"
            f" ({self.examples()}): correct or remove them{drop}"
        )


class NothingUsable(UserError):
    """No row is left. bad: those that cannot be used; dropped: those that are too long."""

    def __init__(self, message: str, bad: BadRows, dropped: int) -> None:
        super().__init__(message)
        self.bad, self.dropped = bad, dropped

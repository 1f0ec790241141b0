"""How many examples an epoch takes from each source of a mixture (data.train with weights).

An epoch has as many examples as the sources have together, whatever the weights are: these say what
it consists of. A source passes through its examples again and again, each time in another order,
and continues in the next epoch where it was. So no example of a source is seen again before all
others of that source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from intel_ft.errors import UserError


@dataclass(frozen=True)
class Part:
    """A source's part of a mixture: the examples it has, and how many an epoch takes from it."""

    examples: int
    per_epoch: int


def parts_of(names: Sequence[str], counts: Sequence[int], weights: Sequence[float]) -> list[Part]:
    """Each source's part: its share of all weights, of as many examples as there are.

    Rounded by the largest remainders (Hamilton's method), so that the parts add up. Raises
    UserError for a source of which an epoch would take no example.
    """
    total, whole = sum(counts), sum(weights)
    quotas = [total * weight / whole for weight in weights]
    taken = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda place: taken[place] - quotas[place])
    for place in by_remainder[: total - sum(taken)]:
        taken[place] += 1
    for name, count in zip(names, taken, strict=True):
        if count == 0:
            raise UserError(
                f"{name}: its weight is so low that an epoch of {total:,} examples would contain"
                " none of its rows: raise its weight in data.train, or remove the source"
            )
    return [Part(count, per_epoch) for count, per_epoch in zip(counts, taken, strict=True)]

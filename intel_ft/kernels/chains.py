"""Which tokens of a packed row a segment attends to, where segments follow other ones.

bounds: int64 [segments + 1]; parents: int64 [segments], the segment that each one follows, -1 for
none, or None if none follows another (batching.row).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor


def ancestors(bounds: Tensor, parents: Tensor | None) -> list[Tensor | None]:
    """The places of the tokens before each segment, from the root on; None for a root."""
    if parents is None:
        return [None] * (len(bounds) - 1)
    return _ancestors(tuple(bounds.tolist()), tuple(parents.tolist()))


@lru_cache(maxsize=2)  # the same for every layer
def _ancestors(bounds: Sequence[int], parents: Sequence[int]) -> list[Tensor | None]:
    segments = [torch.arange(start, end) for start, end in pairwise(bounds)]
    found: list[Tensor | None] = []
    for parent in parents:
        if parent < 0:
            found.append(None)
            continue
        before = found[parent]
        found.append(segments[parent] if before is None else torch.cat((before, segments[parent])))
    return found


def lower_right(
    queries: int,
    keys: int,
    device: torch.device,
    *,
    window: int | None = None,
    skipped: int = 0,
) -> Tensor:
    """Boolean [queries, keys]: the last query attends to all keys, each one before to one less.

    window: only to so many that end with itself; skipped: never to these first keys.
    """
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if window is not None:
        mask = mask.triu(keys - queries + 1 - window)
    mask[:, :skipped] = False
    return mask

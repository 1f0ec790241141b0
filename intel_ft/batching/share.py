"""Splits one step's examples over ranks, and packs each rank's share into rows.

Both are greedy, deterministic and fast: a step has tens of examples, an epoch many steps.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence


def split_by_cost(costs: Sequence[float], world_size: int) -> list[list[int]]:
    """Indices into `costs` for each rank: most expensive first, to the rank with the least load.

    Longest-processing-time scheduling (Graham 1969): the largest load is at most 4/3 of the best.
    With fewer examples than ranks some shares are empty.
    """
    if world_size == 1:
        return [list(range(len(costs)))]
    shares: list[list[int]] = [[] for _ in range(world_size)]
    load = [(0.0, rank) for rank in range(world_size)]
    for position in sorted(range(len(costs)), key=lambda p: (-costs[p], p)):
        cost, rank = heapq.heappop(load)
        shares[rank].append(position)
        heapq.heappush(load, (cost + costs[position], rank))
    return shares


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices into `lengths` for each row, no row over `capacity` tokens.

    Best-fit decreasing: each example, the longest first, goes into the fullest row that has room.
    Every length must be at most `capacity`.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for position in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        length = lengths[position]
        slot = bisect_left(room, (length, -1))
        if slot == len(room):
            rows.append([position])
            insort(room, (capacity - length, len(rows) - 1))
        else:
            left, row = room.pop(slot)
            rows[row].append(position)
            insort(room, (left - length, row))
    return rows


def pack_evenly(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """As `pack`, but with rows of about equal length where that takes no more rows.

    A last row of a few tokens would cost nearly as much as a full one.
    """
    rows = pack(lengths, capacity)
    if len(rows) > 1:
        even = max(*lengths, sum(lengths) // len(rows) * 17 // 16)
        evenly = pack(lengths, min(capacity, even))
        if len(evenly) == len(rows):
            return evenly
    return rows

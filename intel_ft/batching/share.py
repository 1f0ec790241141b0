"""Splitting one step's examples over ranks and packing a share into rows; called from plan.

Both are greedy, deterministic and quick: a step has tens of examples, an epoch many steps.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence


def split_by_cost(costs: Sequence[float], world_size: int) -> list[list[int]]:
    """Positions into `costs` for each rank, the dearest first to the rank with least so far.

    Longest-processing-time scheduling (Graham 1969): the dearest share is at most 4/3 of the best
    possible. With fewer examples than ranks some shares are empty.
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
    """Positions into `lengths` for each row, no row over `capacity` tokens.

    Best-fit decreasing: each example, the longest first, goes into the fullest row that still has
    room. Every length must be at most `capacity`.
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
    """`pack`, but where the same number of rows does with less than `capacity`, in rows of about
    the same length: a last row of a few tokens costs nearly as much as a full one.
    """
    rows = pack(lengths, capacity)
    if len(rows) > 1:
        even = max(*lengths, sum(lengths) // len(rows) * 17 // 16)
        evenly = pack(lengths, min(capacity, even))
        if len(evenly) == len(rows):
            return evenly
    return rows

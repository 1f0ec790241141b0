"""Collectives between the ranks of a run.

In a world of one rank they return at once, and need no process group.
"""

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import Tensor

from intel_ft.errors import EnvironmentProblem, FailedElsewhere, IntelFTError, missing_package
from intel_ft.host.launcher_env import LauncherEnv

_TOLD = "_told_to_all_ranks"  # an attribute of errors
_SHOWN = 80  # characters of a value that an error shows
_NAMED = 5  # further facts that an error names


@dataclass(frozen=True)
class World(LauncherEnv):
    """This process's rank, and collectives with the other ranks."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum each element over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Copy rank 0's tensor to all ranks, in place."""
        return self.all_reduce(tensor if self.rank == 0 else tensor.zero_())

    def all_reduce_max(self, number: int) -> int:
        """The maximum of the ranks' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor([number])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def barrier(self) -> None:
        """Wait for all ranks, on CPUs: under NCCL `dist.barrier` would pick a GPU by itself."""
        self.all_reduce_max(0)

    def require_same(
        self, facts: Mapping[str, str], remedies: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Raise EnvironmentProblem, on all ranks alike, unless all have the same facts.

        The error names the first fact that differs, the ranks that differ from rank 0, the first
        one's host, and the values. remedies: what has to be the same, by fact; the default is the
        fact itself. Every rank takes part in every collective, whatever it finds: which comparison
        comes next depends only on what all ranks have seen.
        """
        if self.size == 1:
            return
        if ranks := self._differing([_number("\n".join(facts))])[0]:
            raise EnvironmentProblem(
                f"{_named(ranks)} and rank 0 compare different settings: install the same version"
                " of intel_ft on all hosts"
            )
        found = self._differing([_number(text) for text in facts.values()])
        differing = [(name, ranks) for name, ranks in zip(facts, found, strict=True) if ranks]
        if not differing:
            return
        name, ranks = differing[0]
        first, values = ranks[0], self._gather_text(facts[name][:_SHOWN])
        hosts = self._gather_text(platform.node()[:_SHOWN])
        others = ", ".join(other for other, _ in differing[1 : _NAMED + 1])
        raise EnvironmentProblem(
            f"the ranks do not have the same {name}{f' (nor {others})' if others else ''}: "
            f"rank {first} on {hosts[first]} has {values[first]}, rank 0 on {hosts[0]} has "
            f"{values[0]}{f' ({_named(ranks[1:])}, too)' if ranks[1:] else ''}: give all ranks "
            f"the same {remedies.get(name, name)}"
        )

    def _differing(self, numbers: list[int]) -> list[list[int]]:
        """For each number, the ranks whose number is not that of rank 0. One collective."""
        everyone = torch.zeros(self.size, len(numbers), dtype=torch.int64)
        everyone[self.rank] = torch.tensor(numbers)
        different = self.all_reduce(everyone) != everyone[0]
        return [column.nonzero().flatten().tolist() for column in different.T]

    def _gather_text(self, text: str) -> list[str]:
        """The texts of all ranks, each of at most _SHOWN characters. One collective."""
        everyone = torch.zeros(self.size, 4 * _SHOWN, dtype=torch.int64)
        own = text.encode()
        everyone[self.rank, : len(own)] = torch.tensor(list(own), dtype=torch.int64)
        rows = self.all_reduce(everyone).to(torch.uint8)
        return [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        return [bool(count) for count in self.all_reduce(torch.tensor(flags).long()).tolist()]

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """An error inside on one rank ends all ranks; the first failed rank raises its error.

        Blocks may be nested: a rank that fails outside an inner block ends the others in it. An
        error between other collectives would leave the others waiting, so compute first, in such a
        block, and exchange afterwards.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if getattr(raised, _TOLD, False):  # in an inner block
                raise
            error = missing_package(raised) or raised
        codes = torch.zeros(self.size, dtype=torch.int64)
        if error is not None:
            codes[self.rank] = error.exit_code if isinstance(error, IntelFTError) else 1
        failed = self.all_reduce(codes).nonzero().flatten().tolist()
        if not failed:
            return
        if error is None or failed[0] != self.rank:
            error = FailedElsewhere(int(codes[failed[0]]), failed[0])
        setattr(error, _TOLD, True)
        raise error

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Local rank 0 of each host runs the block first; the others find its results in caches."""
        if self.local_rank:
            self.barrier()
        try:
            yield
        finally:
            if not self.local_rank:
                self.barrier()


def _number(text: str) -> int:
    """A number of 56 bits for a text: equal for equal texts, and a sum with zeros keeps it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _named(ranks: list[int]) -> str:
    """`rank 1` or `ranks 1, 3`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"

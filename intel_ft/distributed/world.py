"""Collectives between the ranks of a run.

In a world of one rank they return at once, and need no process group.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from intel_ft.errors import EnvironmentProblem, FailedElsewhere, IntelFTError, missing_package
from intel_ft.host.launcher_env import LauncherEnv


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

    def require_same(self, text: str, problem: str) -> None:
        """Raise EnvironmentProblem(problem) unless all ranks have the same text."""
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        if self.all_reduce_max(number) != number or -self.all_reduce_max(-number) != number:
            raise EnvironmentProblem(problem)

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """An error inside on one rank ends all ranks; the first failed rank raises its error."""
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = missing_package(raised) or raised
        codes = torch.zeros(self.size, dtype=torch.int64)
        if error is not None:
            codes[self.rank] = error.exit_code if isinstance(error, IntelFTError) else 1
        failed = self.all_reduce(codes).nonzero().flatten().tolist()
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise FailedElsewhere(int(codes[failed[0]]), failed[0])

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

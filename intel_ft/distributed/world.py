"""What the ranks of a run say to each other; called from training.

A world of one rank is alone: what it says to the others is nothing, and needs no process group.
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
    """All ranks, seen from this one."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Each element's sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on all ranks, in place."""
        return self.all_reduce(tensor if self.rank == 0 else tensor.zero_())

    def all_reduce_max(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor([number])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def barrier(self) -> None:
        """Wait until every rank has come here; on the hosts, while `dist.barrier` under NCCL would
        take a GPU by a rule of its own.
        """
        self.all_reduce_max(0)

    def require_same(self, text: str, problem: str) -> None:
        """Raise EnvironmentProblem(problem) unless all ranks have the same text."""
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        if self.all_reduce_max(number) != number or -self.all_reduce_max(-number) != number:
            raise EnvironmentProblem(problem)

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """What fails inside on one rank fails on all; the first rank that failed says why."""
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
        """The first rank of each host goes in alone; the others find what it left in caches."""
        if self.local_rank:
            self.barrier()
        try:
            yield
        finally:
            if not self.local_rank:
                self.barrier()

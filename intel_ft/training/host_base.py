"""Ranks of one host map one copy of the frozen base, which the first of them prepares.

The copy lies in memory without a name, which ends with the last process that has it, or in the
user's cache (models.base_cache). Where neither works, each rank keeps a copy of its own.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.distributed.binding import interleaved
from intel_ft.distributed.folder_lock import this_machine
from intel_ft.distributed.world import World
from intel_ft.host import cpu, topology
from intel_ft.host.allocator import release_freed_memory
from intel_ft.layers.mapped import Keep, Reader, Writer, private
from intel_ft.models.base_cache import NoCache, cache_folder, cached
from intel_ft.models.fast_path import shared_by
from intel_ft.plurals import count_of

_NAME = "backend.share_base"
_ALONE = "private memory"
_UNCHANGEABLE = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def host_base(
    config: Config, world: World, device: torch.device, *, persistent: bool
) -> "HostBase | None":
    """How this rank shares the frozen base; None where nothing is shared or kept.

    persistent: the base is that of files, so that another run can map what this one prepares.
    """
    on_gpu = device.type != "cpu"
    caches = config.backend.share_base == "cache" and persistent
    if shared_by(config, 2, on_gpu=on_gpu) == 1 or (world.size == 1 and not caches):
        return None
    return HostBase(world, caches)


class HostBase:
    """See models.shared_base.SharedBase."""

    def __init__(self, world: World, caches: bool) -> None:
        self._world, self._caches = world, caches
        self._group, self._sharers, self._leads = 0, 1, True
        self._nodes: tuple[int, ...] = ()  # over which the copy is interleaved
        self._placed, self._note = "", ""
        self._decision = Decision(_NAME, _ALONE, "")

    @property
    def copies_for(self) -> int:
        """See SharedBase."""
        return self._world.local_size

    def agree(self, yes: bool, size: int) -> bool:
        """See SharedBase. Also decides which ranks share one copy: those of a host or of a node."""
        host, own = topology.read(allowed=topology.reachable_cpus()), topology.read().nodes
        node = own[0] if len(host.nodes) > 1 and len(own) == 1 else -1
        free, size = cpu.available_bytes() // 2**20, size // 2**20
        rank = self._world.rank
        rows = self._gather([_number(this_machine()), node, int(yes), free, size, rank])
        here = [row for row in rows if row[0] == rows[rank][0]]
        nodes = {row[1] for row in here}
        if len(host.nodes) > 1 and not self._caches:
            fits = len(nodes) * size <= min(row[3] for row in here) / 2
            if -1 not in nodes and fits:
                here = [row for row in here if row[1] == node]
                self._group = node + 1
                self._placed = f", one for each of {len(nodes)} NUMA nodes"
            else:
                self._nodes = tuple(sorted(host.memory))
                self._placed = f", interleaved over {len(self._nodes)} NUMA nodes"
        self._leads = rank == here[0][5]
        self._sharers = len(here)
        return all(row[2] for row in rows)

    @contextmanager
    def keep(self, facts: dict[str, Any], size: int) -> Iterator[Keep]:
        """See SharedBase. One rank prepares the base, and tells the others where it is."""
        if not self._leads:
            place = self._exchange(-1)
            reader = None if place is None else Reader.open(place, facts)
            self._report(reader or private)
            yield reader or private
            release_freed_memory()
            return
        descriptor = -1
        try:
            with ExitStack() as stack:
                keep = self._prepare(stack, facts, size)
                yield keep
            release_freed_memory()
            descriptor = self._report(keep)
        finally:
            self._exchange(descriptor)

    def decisions(self) -> list[Decision]:
        """See SharedBase."""
        return [self._decision]

    def _prepare(self, stack: ExitStack, facts: Mapping[str, Any], size: int) -> Keep:
        if self._caches:
            try:
                return stack.enter_context(cached(facts, size))
            except NoCache as error:
                self._note = str(error)
        if self._sharers == 1:
            return private
        self._caches = False
        writing = partial(interleaved, self._nodes) if self._nodes else nullcontext
        return stack.enter_context(_in_memory(facts, writing))

    def _exchange(self, descriptor: int) -> Path | None:
        """Tell the ranks of this group where the base is; returns what the leader told."""
        row = [_number(this_machine()), self._group, int(self._leads), os.getpid(), descriptor]
        for host, group, leads, pid, number in self._gather(row):
            if (host, group, leads) == (row[0], row[1], 1):
                return None if number < 0 else Path(f"/proc/{pid}/fd/{number}")
        return None

    def _gather(self, row: list[int]) -> list[list[int]]:
        """The rows of all ranks. One collective."""
        everyone = torch.zeros(self._world.size, len(row), dtype=torch.int64)
        everyone[self._world.rank] = torch.tensor(row)
        rows: list[list[int]] = self._world.all_reduce(everyone).tolist()
        return rows

    def _report(self, keep: Keep) -> int:
        """Set the decision; returns the descriptor that other ranks can map, or -1."""
        failed = keep.failed if isinstance(keep, Writer) else None
        if failed is not None or not isinstance(keep, Reader | Writer):
            where = f"{cache_folder()}: " if self._caches else ""
            reason = f"{where}{failed}" if failed else self._note
            reason = reason or "the rank that prepares the base has no copy to share"
            self._decision = Decision(_NAME, _ALONE, reason)
            return -1
        made = "prepared now" if isinstance(keep, Writer) else "as an earlier process prepared it"
        if not self._leads:
            made = "as another rank prepared it"
        place = f"mapped from {cache_folder()}" if self._caches else f"in memory{self._placed}"
        size = os.fstat(keep.descriptor).st_size / cpu.GIB
        copies = f"one copy of {size:.2f} GiB for {count_of(self._sharers, 'rank')}"
        text = f"{copies if self._sharers > 1 else f'{size:.2f} GiB'} {place}, {made}"
        self._decision = Decision(_NAME, "on", f"{text}; {self._note}" if self._note else text)
        return keep.descriptor


@contextmanager
def _in_memory(
    facts: Mapping[str, Any], writing: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Writer]:
    """A writer to a file without a name, which nothing can change after the block."""
    descriptor = os.memfd_create("intel_ft base", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.fchmod(descriptor, 0o600)
    writer = Writer(descriptor, facts, writing)
    yield writer
    if writer.failed is None:
        try:
            writer.finish()
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _UNCHANGEABLE)
        except OSError as error:
            writer.failed = error.strerror or str(error)


def _number(text: str) -> int:
    """A number of 56 bits for a text, whose sum with zeros is itself."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])

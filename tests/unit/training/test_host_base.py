"""Which rank prepares a base, which ranks map it, and what is said of it."""

import os
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from intel_ft.config import build
from intel_ft.distributed.world import World
from intel_ft.host import cpu, topology
from intel_ft.host.devices import CPU
from intel_ft.host.topology import Core, Topology
from intel_ft.layers.mapped import Reader, Writer, private
from intel_ft.training import host_base
from intel_ft.training.host_base import HostBase

WEIGHT = torch.arange(2**18)


@dataclass(frozen=True)
class Rank(World):
    """A rank that is a thread."""

    shared: list = field(default_factory=list)
    barrier_: threading.Barrier = None

    def all_reduce(self, tensor):
        if self.size == 1:
            return tensor
        self.barrier_.wait(20)
        self.shared[self.rank] = tensor
        self.barrier_.wait(20)
        total = torch.stack(list(self.shared)).sum(0)
        self.barrier_.wait(20)
        return total


def ranks_of(size, use):
    """What `use` returns for each rank of a host, in order."""
    shared, barrier, results = [None] * size, threading.Barrier(size), [None] * size
    place = threading.local()

    def run(rank):
        place.rank = rank
        world = Rank(rank, size, rank, size, "mpirun", shared, barrier)
        try:
            results[rank] = use(world)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def shares(world, caches=False, facts=None, yes=True, make=WEIGHT.clone):
    base = HostBase(world, caches)
    agreed = base.agree(yes, WEIGHT.nbytes)
    with base.keep(facts or {"base": 1}, WEIGHT.nbytes) as keep:
        weight = keep("weight", make)
    [decision] = base.decisions()
    return SimpleNamespace(keep=keep, weight=weight, decision=decision, agreed=agreed)


def test_the_first_rank_prepares_and_the_others_map() -> None:
    results = ranks_of(3, shares)
    assert [type(one.keep) for one in results] == [Writer, Reader, Reader]
    assert all(torch.equal(one.weight, WEIGHT) for one in results)
    assert str(results[0].decision) == (
        "backend.share_base = on (one copy of 0.00 GiB for 3 ranks in memory, prepared now)"
    )
    assert "as another rank prepared it" in results[1].decision.reason
    with pytest.raises(PermissionError):
        os.pwrite(results[0].keep.descriptor, b"1", 0)


def test_ranks_agree_only_if_all_do() -> None:
    results = ranks_of(2, lambda world: shares(world, yes=world.rank == 0))
    assert [one.agreed for one in results] == [False, False]


def test_ranks_with_other_facts_keep_a_copy_of_their_own() -> None:
    results = ranks_of(2, lambda world: shares(world, facts={"base": world.rank}))
    assert results[1].keep is private and torch.equal(results[1].weight, WEIGHT)
    assert results[1].decision.value == "private memory"


def test_a_rank_that_fails_tells_the_others() -> None:
    def use(world):
        def make():
            if world.rank == 0:
                raise MemoryError
            return WEIGHT

        return shares(world, make=make)

    first, second = ranks_of(2, use)
    assert isinstance(first, MemoryError)
    assert second.keep is private and second.weight is WEIGHT


def test_a_full_disk_leaves_private_memory_with_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = host_base.Writer.finish

    def full(self, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_base.Writer, "finish", full)
    for caches, where in ((False, ""), (True, f"{tmp_path}/intel_ft/bases: ")):
        first, second = ranks_of(2, lambda world, caches=caches: shares(world, caches))
        assert str(first.decision) == (
            f"backend.share_base = private memory ({where}No space left on device)"
        )
        assert second.keep is private
        assert torch.equal(first.weight, second.weight)
    monkeypatch.setattr(host_base.Writer, "finish", written)


def test_a_cache_that_cannot_be_used_leaves_sharing_in_memory(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    first, second = ranks_of(2, lambda world: shares(world, True))
    assert "for 2 ranks in memory, prepared now; " in first.decision.reason
    assert "cannot be written to" in first.decision.reason
    assert isinstance(second.keep, Reader)
    [alone] = ranks_of(1, lambda world: shares(world, True))
    assert alone.keep is private and "cannot be written to" in alone.decision.reason


def test_the_next_run_maps_what_this_one_prepared(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [first] = ranks_of(1, lambda world: shares(world, True))
    assert "prepared now" in first.decision.reason
    results = ranks_of(2, lambda world: shares(world, True, make=lambda: 1 / 0))
    assert [type(one.keep) for one in results] == [Reader, Reader]
    assert "as an earlier process prepared it" in results[0].decision.reason


@pytest.mark.parametrize(("free", "copies"), [(2**40, 2), (4 * WEIGHT.nbytes - 2**21, 1)])
def test_each_numa_node_has_a_copy_where_memory_allows(monkeypatch, free, copies) -> None:
    cores = tuple(Core(node, node, (node,)) for node in (0, 1))
    host = Topology(cores, {0: 8.0, 1: 8.0}, None)
    of_rank = threading.local()
    monkeypatch.setattr(
        topology, "read", lambda allowed=None: host if allowed else of_rank.topology
    )
    monkeypatch.setattr(topology, "reachable_cpus", lambda: {0, 1})
    monkeypatch.setattr(cpu, "available_bytes", lambda: free)
    written = []
    monkeypatch.setattr(
        host_base, "interleaved", lambda nodes: written.append(nodes) or nullcontext()
    )

    def use(world):
        of_rank.topology = Topology((cores[world.rank % 2],), {}, None)
        return shares(world)

    results = ranks_of(4, use)
    kinds = [type(one.keep) for one in results]
    if copies == 2:
        assert kinds == [Writer, Writer, Reader, Reader]
        assert "for 2 ranks in memory, one for each of 2 NUMA nodes" in results[3].decision.reason
        assert written == []
    else:
        assert kinds == [Writer, Reader, Reader, Reader]
        assert "interleaved over 2 NUMA nodes" in results[0].decision.reason
        assert written == [(0, 1)]


def settings(share="auto", **method):
    return build(
        {
            "model": {"name_or_path": "x"},
            "data": {"train": "x"},
            "method": method,
            "backend": {"share_base": share},
            "output": {"directory": "x"},
        },
        "test",
    )


@pytest.mark.parametrize(
    ("config", "ranks", "persistent", "shared"),
    [
        (settings(), 1, True, False),
        (settings(), 2, False, True),
        (settings("cache"), 1, True, True),
        (settings("cache"), 1, False, False),  # such as PiSSA's base: no other run has it
        (settings("off"), 2, True, False),
        (settings(name="full"), 2, True, False),
    ],
)
def test_what_is_shared(config, ranks, persistent, shared) -> None:
    world = World(0, ranks, 0, ranks, "mpirun")
    found = host_base.host_base(config, world, CPU, persistent=persistent)
    assert (found is not None) == shared
    gpu = torch.device("cuda", 0)
    assert host_base.host_base(config, world, gpu, persistent=persistent) is None

"""Collectives of `World` between two ranks over gloo: what differs is named, and no rank waits."""

import multiprocessing
import platform
import queue
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem, FailedElsewhere, UserError


def _rank(rank, size, file, function, results):
    torch.set_num_threads(1)
    store = dist.FileStore(str(file), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=20)
    )
    try:
        results.put((rank, function(World(rank, size, rank, size, "test"))))
    except BaseException:
        results.put((rank, traceback.format_exc()))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture
def ranks(tmp_path):
    """A function's result on each rank; it must end on all of them within 20 s.

    A process that is forked from one with other threads may hang before it gets to the function:
    then the ranks are started again. One that hangs in the function has a result, the timeout.
    """

    def on_ranks(function, size=2):
        for attempt in range(3):
            if (found := _results(tmp_path / f"store-{attempt}", function, size)) is not None:
                return found
        raise AssertionError("no attempt reached the function on all ranks")

    return on_ranks


def _results(store, function, size):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, size, store, function, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=30) for _ in processes)
    except queue.Empty:
        return None
    finally:
        for process in processes:
            process.join(2)
            process.kill()
    return [found[rank] for rank in range(size)]


def _said(block):
    try:
        block()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("swap", [False, True])
def test_a_difference_is_named_on_all_ranks(ranks, swap):
    """In both orders: a comparison of maxima passed or hung by which rank's hash was smaller."""

    def differ(world):
        other = (world.rank == 2) != swap
        facts = {"a": "1", "train.learning_rate": "0.5" if other else "0.0002", "z": "2"}
        return _said(lambda: world.require_same(facts))

    said = ranks(differ, size=3)
    assert len(set(said)) == 1, "every rank raises the same error"
    assert said[0].startswith(EnvironmentProblem.__name__)
    for part in ("train.learning_rate", "rank 2", "0.5", "rank 0", "0.0002"):
        assert part in said[0]


def test_several_ranks_and_several_differences(ranks):
    def differ(world):
        facts = {"one": str(world.rank), "two": str(world.rank)}
        return _said(lambda: world.require_same(facts))

    said = ranks(differ, size=3)
    assert len(set(said)) == 1
    assert f"one (nor two): rank 1 on {platform.node()} has 1, rank 0 on" in said[0]
    assert "has 0 (rank 2, too): give all ranks the same one" in said[0]


def test_other_names_are_no_hang(ranks):
    def differ(world):
        return _said(lambda: world.require_same({"a": "1"} | ({"b": "1"} if world.rank else {})))

    said = ranks(differ)
    assert said[0] == said[1] and "rank 1" in said[0] and "version" in said[0]


def test_equal_facts_pass(ranks):
    assert ranks(lambda world: _said(lambda: world.require_same({"a": "é" * 200}))) == [None] * 2


def test_an_error_in_a_nested_block_is_the_failed_ranks_own(ranks):
    def nested(world):
        def block():
            with world.raise_on_all_ranks():
                with world.raise_on_all_ranks():
                    if world.rank == 1:
                        raise UserError("mine")
                world.barrier()

        return _said(block)

    first, second = ranks(nested)
    assert first == f"{FailedElsewhere.__name__}: rank 1 failed"
    assert second == f"{UserError.__name__}: mine"


def test_an_error_outside_an_inner_block_ends_the_others_in_it(ranks):
    def nested(world):
        def block():
            with world.raise_on_all_ranks():
                if world.rank == 1:
                    raise UserError("mine")
                with world.raise_on_all_ranks():
                    pass
                world.broadcast(torch.zeros(1000))

        return _said(block)

    first, second = ranks(nested)
    assert first == f"{FailedElsewhere.__name__}: rank 1 failed"
    assert second == f"{UserError.__name__}: mine"


def test_a_flag_of_one_rank_is_seen_by_all(ranks):
    assert ranks(lambda world: world.any_of([world.rank == 1, False])) == [[True, False]] * 2


def test_one_rank_alone_needs_no_process_group():
    World().require_same({"a": "1"})
    assert World().any_of([True, False]) == [True, False]


def test_ranks_of_other_collectives_do_not_wait_for_each_other():
    from concurrent.futures import ThreadPoolExecutor

    from intel_ft.distributed.rendezvous import require_same

    store = dist.HashStore()

    def meet(values):
        def rank(number):
            name = f"backend.collective {values}"
            return _said(lambda: require_same(store, number, 2, name, values[number]))

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(rank, range(2)))

    assert meet(["gloo", "gloo"]) == [None, None]
    first, second = meet(["gloo", "ccl"])
    host = platform.node()
    assert f"rank 1 on {host} has ccl, rank 0 on {host} has gloo" in first
    assert second.startswith(FailedElsewhere.__name__)

"""When the `ccl` backend leaves a communicator. oneCCL is not needed."""

import ctypes
import os

import pytest

from intel_ft.distributed.oneccl import lifetime
from intel_ft.distributed.oneccl.call_thread import CallThread
from intel_ft.distributed.oneccl.library import end_without_finalizing


class Communicator:
    def __init__(self):
        self.left = 0

    def leave(self):
        self.left += 1


@pytest.fixture
def caller(monkeypatch):
    caller = CallThread()
    monkeypatch.setattr(lifetime, "call_thread", lambda: caller)
    monkeypatch.setattr(lifetime, "_open", [])
    monkeypatch.setattr(lifetime, "_closed", [])
    yield caller
    caller.stop()


def test_the_last_communicator_is_left_after_the_next_is_opened(caller):
    """Without one oneCCL finalizes MPI, and the process could not create a group again."""
    world, group, next_world = Communicator(), Communicator(), Communicator()
    lifetime.opened(world)
    lifetime.opened(group)
    lifetime.closed(group)
    lifetime.closed(group)
    assert (world.left, group.left) == (0, 1)
    lifetime.closed(world)
    assert world.left == 0
    lifetime.opened(next_world)
    assert (world.left, next_world.left) == (1, 0)


def test_a_rank_ends_with_its_exit_code_while_mpi_waits_for_others():
    """mpirun hears what MPI_Finalize would say, or it would end the ranks that still work."""
    ours, mpiruns = os.pipe()
    if (child := os.fork()) == 0:
        os.environ["PMI_FD"] = str(mpiruns)
        end_without_finalizing()
        ctypes.CDLL(None).exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert os.read(ours, 100) == b"cmd=finalize\n"
    os.close(ours)
    os.close(mpiruns)

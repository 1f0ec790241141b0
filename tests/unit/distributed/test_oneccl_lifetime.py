"""When the `ccl` backend leaves a communicator. oneCCL is not needed."""

import pytest

from intel_ft.distributed.oneccl import lifetime
from intel_ft.distributed.oneccl.call_thread import CallThread


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

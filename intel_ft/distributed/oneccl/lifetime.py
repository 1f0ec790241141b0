"""Which communicators this process has, and how they end: one by one, and all at exit.

Without a communicator oneCCL finalizes MPI, which cannot be initialized again. So the last one is
kept until the next is opened or the process exits.
"""

import atexit
import contextlib
import os
import sys
from datetime import timedelta

from intel_ft.distributed.oneccl.call_thread import call_thread
from intel_ft.distributed.oneccl.communicator import CclCommunicator
from intel_ft.distributed.oneccl.library import end_without_finalizing, library

_LEAVE = timedelta(seconds=10)

_open: list[CclCommunicator] = []
_closed: list[CclCommunicator] = []  # not left yet; not more than one between calls


def opened(communicator: CclCommunicator) -> None:
    """Note a connected communicator."""
    _open.append(communicator)
    _leave_closed()


def closed(communicator: CclCommunicator) -> None:
    """Leave a communicator, unless it was left before or is the last one."""
    if communicator in _open:
        _open.remove(communicator)
        _closed.append(communicator)
        if _open:
            _leave_closed()


def _leave_closed() -> None:
    while _closed and call_thread().broken is None:
        call_thread().submit("leaving", _LEAVE.total_seconds(), _closed.pop().leave).wait()


def _leave_all() -> None:
    """Leave all communicators, finalize MPI and end the thread.

    MPI waits there for the other ranks. If they take long, a rank that has destroyed its groups has
    done its part, and ends as it was about to; one that has not may have failed, and ends with 1.
    """
    if not call_thread.cache_info().currsize:
        return
    done = not _open and call_thread().broken is None
    with contextlib.suppress(RuntimeError):
        _closed.extend(reversed(_open))  # the first one, of all ranks, is left last
        _leave_closed()
        call_thread().submit("leaving", _LEAVE.total_seconds(), library().finalize_mpi).wait()
    if call_thread().broken is None:
        call_thread().stop()
    elif done:
        end_without_finalizing()
    else:  # a call is still inside oneCCL, and would block this process until it returns
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


atexit.register(_leave_all)
